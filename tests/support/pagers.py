"""A process whose memory is with a pager, as after a lazy restore, and what it should have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.criu import messages
from agent.memory.paging import Paging
from agent.memory.store import PageStores
from tests.support.memory import DEADLINE, PAGE, Subject, address, memory_directory, pages, subject
from tests.unit.test_criu_images import LAZY, MM, PAGEMAP, PRESENT, image, message

ZEROS = bytes(PAGE)
_LAZY, _LOCKED = 0x22, 0x2022  # MAP_PRIVATE | MAP_ANONYMOUS, and MAP_LOCKED


def mappings(rows: Sequence[tuple[tuple[int, int], int]]) -> bytes:
    """An mm.img of mappings: first page, pages; flags."""
    entry = messages.Mm()
    for (first, count), flags in rows:
        entry.vmas.add(start=address(first), end=address(first + count), flags=flags, status=1)
    return image(MM, entry.SerializeToString())


def pagemap(*lazy: tuple[int, int], there: Sequence[tuple[int, int]] = ()) -> bytes:
    """A pagemap-N.img: (first page, pages) of what is lazy, and of what is in the images."""
    entries = [message((1, 1))]  # the head: pages_id
    for flags, ranges in ((LAZY, lazy), (PRESENT, there)):
        for first, count in ranges:
            entries.append(message((1, address(first)), (4, flags), (5, count)))
    return image(PAGEMAP, *entries)


def record(pid: int, first: int, data: bytes) -> dict[str, Any]:
    return {
        "kind": "pages", "pid": pid, "runs": [[address(first), len(data) // PAGE, 1]], "data": data,
    }  # fmt: skip


class Site:
    """The process, its store and its pagers."""

    def __init__(self, directory: Path, process: Subject) -> None:
        self.directory = directory
        self.process = process
        self.stores = PageStores(directory, 1 << 30)
        self.paging = Paging(directory)
        self.left: list[int] = []

    @property
    def pager(self) -> int:
        return self.paging._process.pid

    def send(self, first: int, data: bytes) -> None:
        """Memory that comes ahead."""
        self.stores.take(record(self.process.pid, first, data))

    def ahead(self, count: int) -> None:
        """The first pages of the area are mapped, have come ahead, and are lazy in CRIU's image."""
        self.process.map(0, count)
        self.send(0, pages(0, count))
        self.image((0, count))

    def image(
        self,
        *lazy: tuple[int, int],
        there: Sequence[tuple[int, int]] = (),
        hidden: Sequence[tuple[int, int]] = (),
    ) -> None:
        """CRIU's: pages that it leaves to the pager, those that it restores of what may not be
        paged out, and mappings that it has seen no pages of."""
        path = self.directory / f"pagemap-{self.process.pid}.img"
        path.write_bytes(pagemap(*lazy, there=there))
        rows = [(one, _LAZY) for one in (*lazy, *hidden)] + [(one, _LOCKED) for one in there]
        path = self.directory / f"mm-{self.process.pid}.img"
        path.write_bytes(mappings(rows))

    async def ready(self, *registered: tuple[int, int]) -> None:
        """The pager listens, and the process has connected; (first page, pages) are lazy in it."""
        await self.paging.ready()
        ranges = [(address(first), count * PAGE) for first, count in registered]
        self.process.do("register", ranges)
        self.process.do("connect", str(self.directory))

    async def restore(self, *registered: tuple[int, int]) -> None:
        await self.ready(*registered)
        self.process.do("give")
        self.process.do("finish")
        await self.paging.restored()

    async def filled(self, told: Callable[[int], None] | None = None) -> int:
        """As `Paging.filled`, in time; told how much is left, but for the first that it hears."""

        def heard(message: dict[str, Any]) -> None:
            if "left" in message:
                self.left.append(message["left"])
                if told is not None:
                    told(message["left"])

        async with asyncio.timeout(DEADLINE):
            return await self.paging.filled(heard)

    async def all_in_place(self) -> int:
        self.paging.fill()
        return await self.filled()

    def pause(self) -> None:
        """The pager does nothing until `resume`."""
        os.kill(self.pager, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pager, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pager, signal.SIGKILL)

    async def gone(self) -> int:
        """The status of the pager, when it has ended."""
        async with asyncio.timeout(DEADLINE):
            while (status := self.paging._process.poll()) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return status


def waiting(thread: Subject) -> Callable[[], bool]:
    """Whether a thread waits for a page; ask for it before it does."""
    tid = thread.do("tid")
    return lambda: thread.waits(tid)


@contextlib.asynccontextmanager
async def restored(count: int, *, lazy: int | None = None) -> AsyncIterator[Site]:
    """Pages from 0 on are with the pager; `lazy` of them in CRIU's list, those after are zeros."""
    async with site() as one:
        one.process.map(0, count)
        one.send(0, pages(0, count))
        one.image((0, count if lazy is None else lazy))
        await one.restore((0, count))
        yield one


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    with memory_directory() as directory, subject() as process:
        made = Site(directory, process)
        try:
            yield made
        finally:
            if made.paging._process is not None:  # else it was another agent's
                with contextlib.suppress(ProcessLookupError):
                    made.resume()
            made.paging.end()
            made.paging.close()
            made.stores.close()
