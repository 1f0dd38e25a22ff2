"""Both ends of a sync on one machine: the destination's rsync sees another directory there."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import offspring
from agent.image.records import Record
from agent.link import Link
from agent.plan import Plan
from agent.sync import child, places, sparse_destination
from agent.sync.destination import SyncDestination
from agent.sync.source import SyncSource
from tests.support.hostile import PLAN


def joined() -> tuple[Link, Link]:
    """Two links of which each hears what the other says."""
    loop = asyncio.get_running_loop()
    links = Link(lambda: "sync"), Link(lambda: "sync")
    for link, other in (links, links[::-1]):

        def write(data: bytes, other: Link = other) -> None:
            loop.call_soon(other.feed, data)

        link.attach(write, lambda: None, lambda _pause: None)
    return links


def elsewhere(patch: pytest.MonkeyPatch, here: Path, there: Path) -> None:
    """Have the receiver find the directory `there` at the path of `here`."""
    usual = offspring.command

    def command(module: str, arguments: Sequence[str]) -> tuple[list[str], list[int]]:
        words, fds = usual(module, arguments)
        if "--server" in arguments:
            mount = f"mount --bind {shlex.quote(str(there))} {shlex.quote(str(here))}"
            words = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *words]
        return words, fds

    def moved(path: str) -> str:
        return path.replace(str(here), str(there), 1)

    def make(dirs: Sequence[str], files: Sequence[str], parents: list[places.Parent]) -> None:
        _make(dirs, files, [*parents, *(one._replace(path=moved(one.path)) for one in parents)])

    _make, _checked_path = places.make, sparse_destination.checked_path
    patch.setattr(places, "make", make)
    patch.setattr(
        "agent.sync.destination.checked_path", lambda *given: moved(_checked_path(*given))
    )
    patch.setattr(offspring, "command", command)
    patch.setattr(child.offspring, "command", command)


class Ends:
    """A source and a destination with their links, and what has gone over them."""

    def __init__(self, plan: Plan) -> None:
        self.ours, self.theirs = joined()
        self.progress: list[tuple[int, int]] = []
        self.noted = 0
        self.source = SyncSource(
            plan, self.ours, lambda *done: self.progress.append(done), self._note
        )
        self.destination = SyncDestination(plan, self.theirs, self._note)
        self.tasks: list[asyncio.Task[None]] = []
        self.seen: list[Record] = []

    def _note(self) -> None:
        self.noted += 1

    async def carry(self, link: Link, take: Callable[[Record], Any]) -> None:
        while True:
            record = await link.receive()
            self.seen.append(record)
            await take(record)

    async def until(self, work: Any) -> Any:
        """Its result, or what ended either end first."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, *self.tasks}, return_when=asyncio.FIRST_COMPLETED)
        for one in self.tasks:
            if one.done():
                task.cancel()
                one.result()
        return await task


@contextlib.asynccontextmanager
async def ends(
    dirs: Sequence[Path] = (), files: Sequence[Path] = (), **over: Any
) -> AsyncIterator[Ends]:
    plan = replace(PLAN, sync_dirs=tuple(map(str, dirs)), sync_files=tuple(map(str, files)), **over)
    both = Ends(plan)
    both.tasks = [
        asyncio.create_task(both.carry(both.ours, both.source.take)),
        asyncio.create_task(both.carry(both.theirs, lambda one: both.destination.take(one))),
    ]
    try:
        yield both
    finally:
        both.source.close()
        both.destination.close()
        for task in both.tasks:
            task.cancel()
        await asyncio.gather(*both.tasks, return_exceptions=True)
