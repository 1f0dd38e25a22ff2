"""The source's part of post-copy: send what the destination still misses, asked-for pages first.

The process runs there; the copy here stands still. The destination says what it misses (`missing`),
for which of it somebody waits (`want`), and that what was sent has been taken (`got`): no more than
`IN_FLIGHT` records are on their way, so that what is waited for does not wait behind the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Collection

from agent.errors import EXIT_IN_DOUBT, AgentError, ProtocolError
from agent.image.records import Record
from agent.link import Link
from agent.memory.arrivals import SLOT
from agent.memory.layout import PAGE
from agent.memory.missing import checked_runs
from agent.memory.ranges import Range, Ranges
from agent.memory.reader import Changes, read_ranges
from agent.plan import checked_pid

IN_FLIGHT = 4  # records of at most `SLOT` bytes
MAX_RUNS = 1 << 14  # of a record that says what is missing
RUNS = 1 << 11  # of a record of pages, at most
_MAX_WANTED = 1 << 14  # pieces that are waited for at once


class MemoryGone(AgentError):
    code = "memory-gone"
    template = "memory of process {pid} that the destination still needs cannot be read: {detail}"
    hint_template = "See whether it is still there, stopped: /proc/{pid}/status at the source."
    exit_status = EXIT_IN_DOUBT


class Serving:
    """The memory of the processes of one tree, as far as somebody asks for it."""

    def __init__(
        self, link: Link, pids: Collection[int], gets_on: Callable[[], None] = lambda: None
    ) -> None:
        """`gets_on` is called for each record that was sent."""
        self._link = link
        self._gets_on = gets_on
        self._owed = {pid: Ranges() for pid in pids}
        self._wanted: deque[tuple[int, Range]] = deque()
        self._memory: dict[int, int] = {}
        self._on_their_way = 0
        self._asked = False  # for all that is missing
        self._news = asyncio.Event()
        self.bytes = 0

    # --- what the destination says

    async def hear(self, record: Record) -> None:
        """A record {"kind": "missing" | "want", "pid", "runs": [[address, pages]]} or "got".

        Raises `ProtocolError`.
        """
        kind = record["kind"]
        if kind == "got":
            self._on_their_way = max(self._on_their_way - 1, 0)
        else:
            pid = checked_pid(record.get("pid"))
            if pid not in self._owed:
                raise ProtocolError(detail=f"memory of {pid}, which is none of the tree's")
            for run in checked_runs(record.get("runs"), MAX_RUNS):
                if kind == "missing":
                    self._asked = True
                    self._owed[pid].add(*run)
                elif len(self._wanted) < _MAX_WANTED:
                    self._wanted.append((pid, run))
        self._news.set()

    # --- what it gets

    async def run(self) -> None:
        """Until it is cancelled. Raises `PeerLost`, `MemoryGone`."""
        while True:
            self._news.clear()
            while self._wanted:
                pid, run = self._wanted.popleft()
                # What was asked for, and is not owed any more, is on its way.
                await self._send(pid, self._owed[pid].cut(*run) if self._asked else [run])
            if self._on_their_way < IN_FLIGHT and (piece := self._next()) is not None:
                await self._send(*piece)
                await asyncio.sleep(0)  # what has come meanwhile is heard
            else:
                await self._news.wait()

    def _next(self) -> tuple[int, list[Range]] | None:
        for pid, owed in self._owed.items():
            batch: list[Range] = []
            size = 0
            while size < SLOT and len(batch) < RUNS and (run := owed.first(SLOT - size)):
                batch += owed.cut(*run)
                size += run[1] - run[0]
            if batch:
                return pid, batch
        return None

    async def _send(self, pid: int, batch: list[Range]) -> None:
        while batch:
            piece, batch = _at_most(SLOT, batch)
            found = self._read(pid, piece)
            data = b"".join(found.data)
            self._on_their_way += 1
            self._link.send({"kind": "pages", "pid": pid, "runs": found.runs, "data": data})
            await self._link.drain()
            self.bytes += len(data)
            self._gets_on()

    def _read(self, pid: int, batch: list[Range]) -> Changes:
        try:
            if pid not in self._memory:
                self._memory[pid] = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            found = read_ranges(pid, self._memory[pid], batch)
        except OSError as error:
            raise MemoryGone(pid=pid, detail=error.strerror or str(error)) from None
        pages = sum(run[1] for run in found.runs)
        if pages * PAGE != sum(end - start for start, end in batch):
            raise MemoryGone(pid=pid, detail="part of it is not there")
        return found

    def close(self) -> None:
        """Idempotent."""
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()


def _at_most(size: int, batch: list[Range]) -> tuple[list[Range], list[Range]]:
    """The first `size` bytes of some ranges, and the rest."""
    for place, (start, end) in enumerate(batch):
        if end - start > size:
            cut = start + size
            first = [*batch[:place], (start, cut)] if size else batch[:place]
            return first, [(cut, end), *batch[place + 1 :]]
        size -= end - start
    return batch, []
