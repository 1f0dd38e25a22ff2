"""Send the memory of a running process ahead, round by round, and in the end what is left.

Sends records {"kind": "pages", "pid": int, "runs": [[address, pages, has data]], "data": bytes}.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agent.image.records import CHUNK
from agent.link import Link
from agent.memory.layout import PAGE
from agent.memory.reader import Changes, MemoryReader
from agent.memory.store import MAX_RUNS

_SMALL = 8 << 20  # bytes that are sent as fast in the blackout as a round could begin
_SHRINKS = 0.7  # of the round before; else another brings nothing more
_AT_ONCE = 8  # spans read before others have their turn
_SAY_EVERY = 5.0  # seconds until a record goes even where nothing has changed: silence is an end

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round has sent."""

    bytes: int
    ms: float


def another(rounds: Sequence[Round], most: int) -> bool:
    """Whether one more round is worth it: they still shrink, and there is something to gain."""
    if not rounds:
        return True
    if len(rounds) >= most or rounds[-1].bytes <= _SMALL:
        return False
    return len(rounds) < 2 or rounds[-1].bytes <= rounds[-2].bytes * _SHRINKS


class Ahead:
    """One migration's memory, on its way."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self._link = link
        self._progress = progress
        self._readers: dict[int, MemoryReader] = {}
        self.rounds: list[Round] = []
        self.sent = 0
        self._said = time.monotonic()

    async def round(self, pidfds: Mapping[int, int], *, last: bool = False) -> Round:
        """Send what has changed in these processes, by PID; in the `last` they stand still.

        Raises `PeerLost`.
        """
        begin, before = time.monotonic(), self.sent
        for pid, pidfd in pidfds.items():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
                await self._process(pid, None if last else pidfd)
        done = Round(self.sent - before, (time.monotonic() - begin) * 1000)
        self.rounds.append(done)
        return done

    async def _process(self, pid: int, pidfd: int | None) -> None:
        reader = self._readers.get(pid)
        if reader is None:
            reader = self._readers[pid] = MemoryReader(pid, pidfd)
        batch = Changes()
        for number, changes in enumerate(reader.changes(last=pidfd is None)):
            if changes.runs:
                batch.take(changes)
            full = batch.size >= CHUNK or len(batch.runs) > MAX_RUNS // 2
            if full or time.monotonic() - self._said > _SAY_EVERY:
                await self._send(pid, batch)
                batch = Changes()
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if batch.runs:
            await self._send(pid, batch)

    async def _send(self, pid: int, batch: Changes) -> None:
        data = b"".join(batch.data)
        self._link.send({"kind": "pages", "pid": pid, "runs": batch.runs, "data": data})
        self.sent += len(data)
        self._said = time.monotonic()
        await self._link.drain()
        self._progress(self.sent)

    def report(self) -> list[dict[str, Any]]:
        """[{"bytes", "ms"}] of each round; the last was in the blackout."""
        return [asdict(one) for one in self.rounds]

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


assert MAX_RUNS // 2 * PAGE >= CHUNK
