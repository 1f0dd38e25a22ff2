"""Decides what is due, claims it, has it run, and keeps what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Callable
from typing import Any, Protocol

from agent.errors import AgentError, internal
from agent.plan import new_id
from orchestrator.scheduling.books import Book, Books
from orchestrator.scheduling.clock import Clock
from orchestrator.scheduling.deciding import (
    FAILED,
    INTERRUPTED,
    MISSED,
    OVER,
    RUNNING,
    WAITING,
    Decision,
    Standing,
    Waits,
    decide,
)
from orchestrator.scheduling.errors import SameName
from orchestrator.scheduling.notify import Notifier
from orchestrator.scheduling.standing import stands
from orchestrator.scheduling.store import GONE, SERVED, WRONG, Row, Run, Store
from orchestrator.scheduling.times import Times
from orchestrator.scheduling.working import Ended, Keep, Work

LOOK = 1.0  # seconds between two looks at the files, the store and the clock
_LOG = logging.getLogger(__name__)
_LEVELS = {FAILED: logging.ERROR, MISSED: logging.WARNING, INTERRUPTED: logging.WARNING}
Make = Callable[[Run, str, Keep], Work]


class Listener(Protocol):
    """Is told of everything as it happens."""

    def note(self, text: str) -> None: ...
    def begun(self, run: Run) -> None: ...

    def ended(self, run: Run, results: list[dict[str, Any]]) -> None:
        """`results`: of its drains, as `migrate drain --json` has them."""
        ...


class Server:
    """Serves until `stop`. Whoever makes it holds the store's lock."""

    def __init__(
        self,
        store: Store,
        books: Books,
        make: Make,
        listener: Listener,
        clock: Clock | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._store, self._books, self._make = store, books, make
        self._listener, self._clock = listener, clock or Clock()
        self._notifier = notifier or Notifier({})
        self._work: dict[str, Work] = {}  # by the playbook's name
        self._tasks: set[asyncio.Task[None]] = set()
        self._unwritten: list[Run] = []  # what came of them could not be written yet
        self._wakes = asyncio.Event()
        self._said: dict[str, str] = {}  # what was noted last, by what it is about
        self._shown: dict[str, Row] = {}
        self.stopping = False
        self.interrupted: list[Run] = []

    def stop(self) -> None:
        """Begin nothing more, and interrupt what is at work; it is gone on with later."""
        if self.stopping:
            self._listener.note("still undoing what is on the move: it is never left half done")
            return
        self.stopping = True
        self._notifier.stopping()
        self._wakes.set()
        for one in self._work.values():
            one.interrupt()

    async def serve(self) -> None:
        """Returns once it is stopped and nothing is at work. Raises `AgentError` at the start."""
        self._books.served_before(row.path for row in self._store.playbooks() if row.state != GONE)
        with self._store.transaction():
            for run in self._store.left():
                if run.state == RUNNING:  # of a server that was killed
                    run.state = INTERRUPTED
                    self._store.change(run)
        self._begin(self._tick(*await self._look()))
        self._notifier.ready(self._status())
        while not self.stopping:
            await self._pause()
            if not self.stopping:
                await self._step()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=LOOK)
            self._notifier.alive(f"{len(self._work)} being undone or ended")
        with contextlib.suppress(AgentError):
            self._write_late()

    async def _look(self) -> tuple[float, list[Book]]:
        """What is due by then is run as these say, which were read after it.

        By a thread: a large playbook takes most of a second, and others may be on the move.
        """
        now = self._clock.now()
        return now, await asyncio.to_thread(self._books.now)

    async def _step(self) -> None:
        """A store that cannot be written for a while holds up, and loses and doubles nothing."""
        now, found = await self._look()
        if self.stopping:
            return
        try:
            self._write_late()
            self._begin(self._tick(now, found))
        except AgentError as error:
            self._note_once("store", f"{error.message}. Until it can be, nothing is begun.")
        else:
            self._note_once("store", "")
        self._notifier.alive(self._status())

    async def _pause(self) -> None:
        """Until something may be due, has ended, or is to be looked at again."""
        now = self._clock.now()
        moments = [one for row in self._shown.values() if (one := self._next(row, now))]
        seconds = min([self._clock.lasts(one) for one in moments] + [LOOK])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._wakes.wait()
        self._wakes.clear()

    def _next(self, row: Row, now: float) -> float | None:
        times = self._times(row)
        due = times.next(row.seen) if times is not None else None
        begin = times.begin(due) if times is not None and due is not None else None
        return begin if begin is not None and begin > now else None

    def _times(self, row: Row) -> Times | None:
        if row.schedule is None or row.state == GONE:
            return None
        return Times(row.schedule, row.name, self._store.salt)

    def _status(self) -> str:
        served = sum(row.state == SERVED for row in self._shown.values())
        return f"{served} served, {len(self._work)} at work"

    # --- what is due

    def _tick(self, now: float, found: list[Book]) -> list[tuple[Run, str]]:
        """Decide and claim, all in one transaction; what is to be begun, with its path."""
        books: dict[str, Book] = {}
        for book in found:
            first = books.setdefault(book.name, book)
            if first.path != book.path:
                error = SameName(first=first.path, second=book.path, name=book.name)
                self._note_once(book.path, f"{error.message}: the second is not served")
        begun: list[tuple[Run, str]] = []
        over: list[Run] = []
        rows: dict[str, Row] = {}
        with self._store.transaction():
            known = {row.name: row for row in self._store.playbooks()}
            left = self._store.left()
            for name in sorted({*known, *books}):
                row = stands(known.get(name), books.get(name), now)
                assert row is not None
                before = known.get(name)
                if before is not None and before.seen > row.seen:
                    self._store.forget_later(name, row.seen)
                    self._listener.note(f"{name}: the clock was put back, and is gone by from now")
                mine = [run for run in left if run.playbook == name]
                for run in self._decide(row, before, books.get(name), mine, now):
                    if run.state == RUNNING:
                        begun.append((run, row.path))
                    elif run.state in OVER:
                        over.append(run)
                rows[name] = row
        for row in rows.values():
            said = f"{row.name}: {row.why}" if row.why else ""
            if row.state == WRONG and self._said.get(row.name) != said:
                about = {"playbook": row.name, "path": row.path, "why": row.why}
                _LOG.warning("playbook wrong", extra=about)
            self._note_once(row.name, said)
        self._shown = rows
        for run in over:
            _log("run over", run)
            self._listener.ended(run, [])
        return begun

    def _decide(
        self, row: Row, before: Row | None, book: Book | None, left: list[Run], now: float
    ) -> list[Run]:
        """Write down what follows for one playbook; the runs of which something was decided."""
        times = self._times(row)
        at_work = next((run.due for run in left if run.state == RUNNING), None)
        standing = Standing(
            row.seen,
            at_work,
            tuple(Waits(run.due, run.asked) for run in left if run.state == INTERRUPTED),
            tuple(Waits(run.due, run.asked) for run in left if run.state == WAITING),
            row.paused is not None,
            row.why,
        )
        decided = decide(times, standing, now)
        row.seen = decided.seen
        if row != before:
            self._store.put(row)
        by_due = {run.due: run for run in left}
        changed = []
        for one in decided.decisions:
            run = by_due.get(one.due)
            fresh = run is None
            if run is None:
                run = Run(row.name, one.due, one.state)
            self._apply(run, one, book, times, now)
            if not fresh:
                self._store.change(run)
            elif not self._store.add(run):
                continue  # it was decided before the clock was put back
            changed.append(run)
        if any(run.state in OVER for run in changed):
            self._store.prune(row.name)
        return changed

    def _apply(
        self, run: Run, one: Decision, book: Book | None, times: Times | None, now: float
    ) -> None:
        goes_on = run.state == INTERRUPTED
        run.state, run.why = one.state, one.why
        if one.state in OVER:
            run.ended = now
        if one.state != RUNNING:
            return
        run.times += 1
        if not goes_on:
            run.begun = now
            run.closes = times.closes(run.due) if times is not None else None
            assert book is not None
            run.digest = book.digest
            run.drains = [{"id": new_id(), "node": one, "outcome": ""} for one in book.drains]

    # --- what is at work

    def _begin(self, runs: list[tuple[Run, str]]) -> None:
        for run, path in runs:
            work = self._work[run.playbook] = self._make(run, path, self._keep)
            _log("run begun" if run.times == 1 else "run gone on with", run)
            self._listener.begun(run)
            self._tasks.add(task := asyncio.create_task(self._carry(run, work)))
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, run: Run, work: Work) -> None:
        try:
            ended = await work.go()
        except Exception as error:
            ended = Ended(FAILED, internal(error).message)
        del self._work[run.playbook]
        run.state, run.why, run.ended = ended.state, ended.why, self._clock.now()
        if run.state == INTERRUPTED:
            run.ended = None
            self.interrupted.append(run)
        self._unwritten.append(run)
        try:
            self._write_late()
        except AgentError as error:
            self._note_once("store", error.message)
        _log("run over" if run.state in OVER else "run interrupted", run)
        self._listener.ended(run, ended.results)
        self._wakes.set()

    def _keep(self, run: Run) -> None:
        """How its drains stand, as far as it can be written: their journals have it, too."""
        try:
            with self._store.transaction():
                self._store.change(run)
        except AgentError as error:
            self._note_once("store", error.message)

    def _write_late(self) -> None:
        """Write what came of those that have ended. Raises `AgentError`."""
        if self._unwritten:
            with self._store.transaction():
                for run in self._unwritten:
                    self._store.change(run)
            self._unwritten.clear()

    def _note_once(self, about: str, text: str) -> None:
        if self._said.get(about, "") != text:
            self._said[about] = text
            if text:
                self._listener.note(text)


def _log(event: str, run: Run) -> None:
    """A line in the log, with what names the run and its drains."""
    due = datetime.datetime.fromtimestamp(run.due, datetime.UTC)
    _LOG.log(_LEVELS.get(run.state, logging.INFO), event, extra={
        "playbook": run.playbook, "due": due.isoformat(timespec="milliseconds"),
        "state": run.state, "why": run.why or None,
        "drains": [one["id"] for one in run.drains if one["id"]] or None,
    })  # fmt: skip
