"""A process that runs while its memory is still with another, and what brings it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from agent.errors import PeerLost
from agent.memory.filling import Filling
from agent.memory.pagemaps import LATER
from agent.memory.paging import Paging
from agent.memory.serving import Serving
from tests.support.memory import DEADLINE, Subject, address, pages, subject
from tests.support.pagers import Site, site

Record = dict[str, Any]


class End:
    """One end of a link; both processes are as one PID to it."""

    def __init__(self) -> None:
        self.other: End
        self.records: asyncio.Queue[Record | None] = asyncio.Queue()
        self.gone = False
        self.lost = asyncio.Event()
        self.pid = 0  # of this side's process
        self.sent: list[Record] = []

    def send(self, record: Record) -> None:
        if self.gone:
            raise PeerLost(phase="post_copy", detail="it is gone")
        self.sent.append(record)
        if "pid" in record:
            record = {**record, "pid": self.other.pid}
        self.other.records.put_nowait(record)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> Record:
        record = await self.records.get()
        if record is None:
            raise PeerLost(phase="post_copy", detail="it is gone")
        return record

    async def has_sent(self, records: int, filling: Filling) -> None:
        """Until it has, or nothing is missing."""
        async with asyncio.timeout(DEADLINE):
            while len(self.sent) < records and not filling.complete.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def cut(self) -> None:
        for end in (self, self.other):
            end.gone = True
            end.records.put_nowait(None)
            end.lost.set()


def ends() -> tuple[End, End]:
    one, other = End(), End()
    one.other, other.other = other, one
    return one, other


class Away:
    """A restored process (`site`), and the one that has its memory (`source`)."""

    def __init__(self, made: Site, source: Subject) -> None:
        self.site, self.source = made, source
        self.process = made.process
        self.left: list[int] = []
        self.before: list[Paging] = []  # of agents that have gone

    async def restore(self, count: int, *, ahead: int = 0) -> None:
        """Pages from 0 on are at the source; the first `ahead` have come."""
        self.source.map(0, count)
        self.source.write(0, pages(0, count))
        self.process.map(0, count)
        if ahead:
            self.site.send(0, pages(0, ahead))
        self.owe((ahead, count - ahead))
        self.site.image((0, count))
        await self.site.restore((0, count))
        self.site.paging.fill()

    def owe(self, *runs: tuple[int, int]) -> None:
        for first, count in runs:
            owed = {"pid": self.process.pid, "address": address(first)}
            self.site.stores.owe({"kind": "owed", **owed, "map": bytes([LATER]) * count})

    @contextlib.asynccontextmanager
    async def link(self, *, again: bool = False) -> AsyncIterator[tuple[End, Filling]]:
        """Both sides at work, over a link that may be cut."""
        here, there = ends()
        here.pid, there.pid = self.process.pid, self.source.pid
        if again:  # as another agent would
            self.site.paging.close()
            self.before.append(self.site.paging)
            self.site.paging = Paging(self.site.directory, start=False)
            await self.site.paging.restored()
        filling = Filling(here, self.site.paging, self.left.append)  # type: ignore[arg-type]
        serving = Serving(there, [self.source.pid])  # type: ignore[arg-type]

        async def asked() -> None:
            while True:
                await serving.hear(await there.receive())

        async def taken() -> None:
            while True:
                await filling.take(await here.receive())

        filling.ask()
        works = (serving.run(), asked(), taken(), self.site.paging.filled(filling.heard))
        tasks = [asyncio.ensure_future(one) for one in works]
        try:
            yield here, filling
        finally:
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            filling.close()
            serving.close()
            for one in done:
                if isinstance(one, Exception) and not isinstance(one, PeerLost):
                    raise one

    async def complete(self, filling: Filling) -> None:
        async with asyncio.timeout(DEADLINE):
            await filling.complete.wait()

    async def read(self, first: int, count: int = 1) -> bytes:
        return await asyncio.to_thread(self.process.read, first, count)


@contextmanager
def _both() -> Iterator[Subject]:
    with subject() as source:
        yield source


@contextlib.asynccontextmanager
async def away(count: int, *, ahead: int = 0) -> AsyncIterator[Away]:
    """So many pages of which the first `ahead` have come."""
    async with site() as made:
        with _both() as source:
            one = Away(made, source)
            if count:
                await one.restore(count, ahead=ahead)
            yield one
            if one.before:  # its pager ends with the process
                made.process.end()
                started = one.before[0]._process
                assert started is not None
                await asyncio.to_thread(started.wait, DEADLINE)
