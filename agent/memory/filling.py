"""The destination's part of post-copy: ask the source for what is missing, for the pager to place.

`agent.memory.serving` has the other side of the conversation.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable
from typing import Any

from agent.errors import AgentError, ProtocolError
from agent.image.records import Record
from agent.link import Link
from agent.memory.arrivals import SLOT, Runs, offset
from agent.memory.layout import PAGE, is_run
from agent.memory.missing import Missing
from agent.memory.paging import Paging
from agent.memory.serving import IN_FLIGHT, MAX_RUNS, RUNS
from agent.plan import checked_pid

_SLOTS = IN_FLIGHT * 2  # what is waited for comes beside the rest


class Filling:
    """One link's part of it; another link's may follow."""

    def __init__(self, link: Link, paging: Paging, left: Callable[[int], None]) -> None:
        """`left` is told the bytes that are not in their place."""
        self._link = link
        self._paging = paging
        self._left = left
        self._fd = os.memfd_create("streamferry-inbox", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _SLOTS * SLOT)
        self._inbox = memoryview(mmap.mmap(self._fd, _SLOTS * SLOT))
        self._free = list(range(_SLOTS))
        self._news = asyncio.Event()
        self.complete = asyncio.Event()  # nothing is missing any more
        paging.replaced = self._again
        self._open()

    def _open(self) -> None:
        """Tell the pager where things arrive."""
        self._paging.say(self._fd, inbox=_SLOTS)

    def _again(self) -> None:
        """Another goes on for a pager that was killed."""
        taken = _SLOTS - len(self._free)
        self._free = list(range(_SLOTS))
        self._news.set()
        self._open()
        self.ask(taken)

    def ask(self, taken: int = 0) -> None:
        """Tell the source what is missing; until then it only sends what somebody waits for.

        `taken`: records that went with a pager.
        """
        try:
            for _ in range(taken):
                self._link.send({"kind": "got"})
            for pid, fd in self._paging.missing:
                runs: list[list[int]] = []
                for start, end, theirs in Missing(fd).ranges():
                    runs.append([theirs, (end - start) // PAGE])
                for first in range(0, len(runs), MAX_RUNS):
                    piece = runs[first : first + MAX_RUNS]
                    self._link.send({"kind": "missing", "pid": pid, "runs": piece})
        except AgentError:  # the link is gone, as whoever receives will see
            return

    def heard(self, message: dict[str, Any]) -> None:
        """What the pager says."""
        try:
            if "want" in message:
                self._link.send({"kind": "want", "pid": message["want"], "runs": message["runs"]})
            elif "placed" in message:
                self._free.append(message["placed"])
                self._news.set()
                self._link.send({"kind": "got"})
        except AgentError:  # the link is gone
            pass
        if "left" in message:
            self._left(int(message["left"]))
        if "complete" in message:
            self.complete.set()

    async def take(self, record: Record) -> None:
        """A record of pages, as `PageStores.take` has them. Raises `ProtocolError`."""
        pid, runs, data = checked_pid(record.get("pid")), record.get("runs"), record.get("data")
        if not isinstance(data, bytes):
            raise ProtocolError(detail="a record of pages without data")
        checked = _checked(runs, len(data))
        while not self._free:
            self._news.clear()
            await self._news.wait()
        slot = self._free.pop()
        begin = slot * SLOT + offset(checked)
        self._inbox[begin : begin + len(data)] = data
        self._paging.say(pages=pid, runs=checked, slot=slot)

    def close(self) -> None:
        """Idempotent."""
        self._paging.replaced = lambda: None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _checked(runs: object, size: int) -> Runs:
    if not isinstance(runs, list) or len(runs) > RUNS * 2 or size > SLOT:
        raise ProtocolError(detail="a malformed record of pages")
    checked: Runs = []
    for run in runs:
        match run:
            case [int(address), int(pages), int(has_data)] if is_run(address, pages):
                checked.append([address, pages, int(bool(has_data))])
            case _:
                raise ProtocolError(detail="a malformed run of pages")
    if sum(pages for _, pages, has_data in checked if has_data) * PAGE != size:
        raise ProtocolError(detail="a record of pages with more or less data than it says")
    return checked
