"""A scheduler on a clock that is put by hand, with drains or with runs that end when told to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.deciding import DONE, INTERRUPTED
from orchestrator.scheduling.server import Server
from orchestrator.scheduling.store import Lock, Run, Store
from orchestrator.scheduling.working import Ended, Keep
from tests.support.polling import until

NOON = datetime.datetime.fromisoformat("2026-06-01T12:00+00:00").timestamp()
Json = dict[str, Any]


class HandClock:
    def __init__(self, now: float = NOON) -> None:
        self.moment = now

    def now(self) -> float:
        return self.moment

    def lasts(self, until: float) -> float:
        return 0.005


class Held:
    """A run that ends when it is told to."""

    def __init__(self, run: Run) -> None:
        self.run, self.ends = run, asyncio.get_running_loop().create_future()

    def interrupt(self) -> None:
        if not self.ends.done():
            self.ends.set_result(Ended(INTERRUPTED))

    async def go(self) -> Ended:
        return await self.ends

    def end(self, state: str = DONE, why: str = "") -> None:
        self.ends.set_result(Ended(state, why))


class Desk:
    """A directory with playbooks and a store, and servers that come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / "schedule.db"
        self.books = directory / "books"
        self.books.mkdir()
        self.clock = HandClock()
        self.held: list[Held] = []
        self.notes: list[str] = []
        self.seen: list[tuple[str, str]] = []  # (state, playbook)
        self.make: Any = self._hold
        self.server: Server | None = None
        self.task: asyncio.Task[None] | None = None

    def write(
        self, name: str = "nightly", drains: list[Json] | None = None, **schedule: Any
    ) -> Path:
        path = self.books / f"{name}.yaml"
        book = {"playbook": 1, "drains": drains or [{"node": "src", "to": ["dst", "spare"]}]}
        if schedule:
            book["schedule"] = schedule
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(book))
        fresh.rename(path)
        return path

    def _hold(self, run: Run, path: str, keep: Keep) -> Held:
        self.held.append(Held(run))
        return self.held[-1]

    # the server's listener

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begun(self, run: Run) -> None:
        self.seen.append(("begun", run.playbook))

    def ended(self, run: Run, results: list[Json]) -> None:
        self.seen.append((run.state, run.playbook))

    @contextlib.asynccontextmanager
    async def serving(self, *named: str) -> AsyncIterator[Server]:
        """Until the block ends, as by a signal; or, after `kill`, as by kill -9."""
        books = Books(named or [str(self.books)])
        books.first()
        lock = Lock(self.path)
        store = Store(self.path, make=True)
        self.server = Server(store, books, self.make, self, self.clock)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.server.serve())
        try:
            await until(lambda: self.server._shown or self.task.done())
            yield self.server
            if not self.task.done():
                self.server.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        finally:
            self.task.cancel()
            for task in list(self.server._tasks):
                task.cancel()
            await asyncio.gather(self.task, *self.server._tasks, return_exceptions=True)
            store.close()
            lock.release()

    def kill(self) -> None:
        """Whatever the server would still have done, it does not."""
        assert self.server is not None and self.task is not None
        self.server._unwritten = _Nothing()  # type: ignore[assignment]
        self.server._keep = lambda run: None  # type: ignore[method-assign]
        self.task.cancel()
        for task in self.server._tasks:
            task.cancel()

    def wake(self) -> None:
        assert self.server is not None
        self.server._wakes.set()

    async def at(self, seconds: float, *states: str) -> list[Run]:
        """Put the clock to so many seconds after noon; wait until the runs are in these states."""
        assert self.server is not None
        # Each look makes it anew; the first that ends may have begun before the clock was put.
        looks = [self.server._shown]
        self.clock.moment = NOON + seconds
        found: list[Run] = []

        def there() -> bool:
            self.wake()
            found[:] = self.runs()
            assert self.server is not None
            if self.server._shown is not looks[-1]:
                looks.append(self.server._shown)
            return len(looks) > 2 and [one.state for one in found] == list(states)

        try:
            await until(there, 5)
        except TimeoutError:
            raise AssertionError([(one.due - NOON, one.state, one.why) for one in found]) from None
        return found

    def runs(self) -> list[Run]:
        store = Store(self.path)
        with contextlib.closing(store):
            return store.runs()


class _Nothing(list[Run]):
    def append(self, run: Run) -> None: ...
