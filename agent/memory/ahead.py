"""Send the memory of a running process ahead, round by round, and in the end what is left.

Sends records {"kind": "pages", "pid": int, "runs": [[address, pages, has data]], "data": bytes};
where what is left comes later, {"kind": "owed", "pid": int, "address": int, "map": bytes} says
what (`agent.memory.pagemaps`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.bandwidth import Bandwidth
from agent.errors import AgentError
from agent.image.records import CHUNK
from agent.link import Link
from agent.memory.layout import PAGE, anonymous
from agent.memory.pagemaps import LATER, runs, sent
from agent.memory.ranges import Range
from agent.memory.reader import Changes, MemoryReader
from agent.memory.store import MAX_RUNS

_SMALL = 8 << 20  # bytes that are sent as fast in the blackout as a round could begin
_SHRINKS = 0.7  # of the round before; else another brings nothing more
_AT_HAND = 128 << 10  # bytes of one mapping that go at once rather than when they are asked for
_AT_ONCE = 8  # spans read before others have their turn
# Seconds a byte: CRIU allocates 16 bytes for each private page that there could be where somebody
# else has the pages (create_page_pipe, criu/mem.c); and those that there are, shipped.
_WITHOUT, _SHIPPED = 0.006 / (1 << 30), 1 / 1e9
_SMALL_S = 0.05
_SAY_EVERY = 5.0  # seconds until a record goes even where nothing has changed: silence is an end

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round has sent."""

    bytes: int
    ms: float
    held_ms: float = 0.0  # of it, only to keep the bandwidth


def another(rounds: Sequence[Round], most: int) -> bool:
    """Whether one more round is worth it: they still shrink, and there is something to gain."""
    if not rounds:
        return most > 0
    if len(rounds) >= most or rounds[-1].bytes <= _SMALL:
        return False
    return len(rounds) < 2 or rounds[-1].bytes <= rounds[-2].bytes * _SHRINKS


class DirtiesTooFast(AgentError):
    code = "dirties-too-fast"
    template = (
        "the process changes its memory faster than the link takes it: {mib} MiB in a round, which "
        "would stand still for {seconds} s, longer than {limit} s"
    )
    hint_template = (
        "Have it follow (--memory post-copy), allow more (--max-blackout), or come back when the "
        "process is less busy. Nothing was frozen."
    )


class MappedTooLarge(AgentError):
    code = "mapped-too-large"
    template = (
        "the process has {gib} GiB mapped, used or not: to dump it without its memory takes CRIU "
        "{seconds} s in the blackout, longer than {limit} s"
    )
    hint_template = "Use --memory stop, or allow more (--max-blackout). Nothing was frozen."


def mapped(pids: Iterable[int]) -> int:
    """Bytes of private anonymous mappings, whether there is anything in them."""
    size = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            size += sum(end - start for start, end in anonymous(pid))
    return size


def too_large(size: int, limit: float) -> MappedTooLarge | None:
    """That CRIU takes longer than `limit` seconds for so much that is mapped."""
    seconds = size * _WITHOUT
    if seconds <= limit:
        return None
    return MappedTooLarge(gib=size >> 30, seconds=f"{seconds:.1f}", limit=limit)


def at_once(memory: int) -> float:
    """Seconds that a process stands still for, about, if so much memory goes then."""
    return _SMALL_S + memory * _SHIPPED


def too_fast(rounds: Sequence[Round], limit: float) -> DirtiesTooFast | None:
    """That a round as long as the last does not fit into a blackout of `limit` seconds.

    Of one round nothing is known yet: it was all of the memory.
    """
    if len(rounds) < 2:
        return None
    last = rounds[-1]
    seconds = (last.ms - last.held_ms) / 1000
    if seconds <= limit:
        return None
    return DirtiesTooFast(mib=last.bytes >> 20, seconds=f"{seconds:.1f}", limit=limit)


class Ahead:
    """One migration's memory, on its way."""

    def __init__(
        self, link: Link, progress: Progress, bandwidth: Bandwidth, *, tracked: bool = False
    ) -> None:
        """`bandwidth` is kept while the processes run; `tracked`: only of processes of which the
        kernel tells what is written to."""
        self._link = link
        self._bandwidth = bandwidth
        self._tracked = tracked
        self._progress = progress
        self._readers: dict[int, MemoryReader] = {}
        self.rounds: list[Round] = []
        self.sent = 0
        self._said = time.monotonic()

    async def round(self, pidfds: Mapping[int, int], *, last: bool = False) -> Round:
        """Send what has changed in these processes, by PID; in the `last` they stand still.

        Raises `PeerLost`.
        """
        begin, before, held = time.monotonic(), self.sent, self._bandwidth.waited
        for pid, pidfd in pidfds.items():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
                await self._process(pid, None if last else pidfd)
        done = Round(
            self.sent - before,
            (time.monotonic() - begin) * 1000,
            (self._bandwidth.waited - held) * 1000,
        )
        self.rounds.append(done)
        return done

    async def _process(self, pid: int, pidfd: int | None) -> None:
        reader = self._readers.get(pid)
        if reader is None:
            reader = self._readers[pid] = MemoryReader(pid, pidfd)
        if self._tracked and not reader.tracked:
            return
        batch = Changes()
        for number, changes in enumerate(reader.changes(last=pidfd is None)):
            if changes.runs:
                batch.take(changes)
            full = batch.size >= CHUNK or len(batch.runs) > MAX_RUNS // 2
            if full or time.monotonic() - self._said > _SAY_EVERY:
                await self._send(pid, batch, pidfd is None)
                batch = Changes()
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if batch.runs:
            await self._send(pid, batch, pidfd is None)

    async def owe(self, pids: Iterable[int]) -> None:
        """Say what these processes have, and what of it was not sent; they stand still. Raises
        `PeerLost`.

        Of small mappings it goes at once: there is what a process needs to run at all.
        """
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # a zombie
                reader = self._readers.get(pid) or MemoryReader(pid)
                for start, end in anonymous(pid):
                    maps = list(reader.left(start, end))
                    if sum(pages.count(LATER) for _, pages in maps) * PAGE <= _AT_HAND:
                        later = [one for address, pages in maps for one in runs(address, pages)]
                        if later:
                            await self._send(pid, reader.read(later), True)
                        maps = [(address, sent(pages)) for address, pages in maps]
                    for address, pages in maps:
                        await self._tell(pid, address, pages)

    async def tell(self, hidden: Mapping[int, Iterable[Range]]) -> None:
        """Say which pages there are in some mappings, by PID, all of which were sent. Raises
        `PeerLost`."""
        for pid, mappings in hidden.items():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # a zombie
                reader = self._readers.get(pid) or MemoryReader(pid)
                for start, end in mappings:
                    for address, pages in reader.left(start, end):
                        await self._tell(pid, address, sent(pages))

    async def _tell(self, pid: int, address: int, pages: bytes) -> None:
        self._link.send({"kind": "owed", "pid": pid, "address": address, "map": pages})
        await self._link.drain()

    async def _send(self, pid: int, batch: Changes, last: bool) -> None:
        data = b"".join(batch.data)
        size = self._link.send({"kind": "pages", "pid": pid, "runs": batch.runs, "data": data})
        self.sent += len(data)
        self._said = time.monotonic()
        await self._link.drain()
        self._progress(self.sent)
        if not last:
            await self._bandwidth.spend(size)

    def report(self) -> list[dict[str, Any]]:
        """[{"bytes", "ms"}] of each round; the last was in the blackout."""
        return [{"bytes": one.bytes, "ms": one.ms} for one in self.rounds]

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


assert MAX_RUNS // 2 * PAGE >= CHUNK
