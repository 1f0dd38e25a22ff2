"""What keeps one host's part of a migration safe: protocol, journal and guardian."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import host_id
from agent.errors import EXIT_REFUSED, AgentError
from agent.guardian import Guardian
from agent.journal import (
    DIRECTORY,
    History,
    Journal,
    JournalBusy,
    as_journal_error,
    histories,
    open_directory,
)
from agent.kernel import proc
from agent.plan import Plan
from agent.protocol import DESTINATION, SOURCE, TABLES, Found, Machine


class AlreadyMoving(AgentError):
    code = "already-moving"
    template = "process {pid} is being moved already, by migration {id}"
    hint_template = "Wait for its end."
    exit_status = EXIT_REFUSED


class Unfinished(AgentError):
    code = "unfinished"
    template = "migration {id} of process {pid} was never ended"
    hint_template = "End it first: `migrate recover {id}`."
    exit_status = EXIT_REFUSED


class Custody:
    """From the first line in the journal until all is over on this host."""

    def __init__(self, plan: Plan, role: str, directory: Path = DIRECTORY, **facts: object) -> None:
        """Begin; `facts` go into the journal. Raises `AlreadyMoving`, `Unfinished`, `OSError`,
        `JournalError`."""
        self._noted = 0.0
        with _Doorway(directory):
            if role == SOURCE:
                _refuse_twice(plan.pid, directory)
            else:
                _refuse_beside_leftovers(plan, directory)
            with as_journal_error(directory / host_id.FILE):
                self.host_id = host_id.ensure(directory)
            self.journal = Journal.create(plan.id, role, directory)
        try:
            self.machine = Machine(TABLES[role], self.journal.record)
            self.machine.on(
                "prepare",
                plan=plan.to_wire(),
                boot=proc.boot_id(),
                born=proc.born(plan.pid),
                agent=os.getpid(),
                agent_born=proc.born(os.getpid()),
                **facts,
            )
            self._guardian = Guardian(plan.id, role, directory)
        except BaseException:
            self.journal.discard()
            raise

    def gets_on(self, every: float) -> None:
        """Note, once in so many seconds, that the agent does: the guardian takes one that is at one
        thing for long for hung. Raises `JournalError`."""
        if time.monotonic() - self._noted > every:
            self._noted = time.monotonic()
            self.journal.note()

    def end(self) -> None:
        """Let go. A journal that is over is removed, any other is for who comes next. Idempotent.

        The destination's is kept where it has the process, until it is told to forget it: the
        source may still ask, or `migrate recover`, if nobody has heard how it ended. Raises
        `JournalError` where one could not be removed.
        """
        if self.machine.state == "ready":  # nothing was done yet
            self.machine.back("fail")
            self.machine.back("undone")
        state = self.machine.state
        try:
            if TABLES[self.machine.table.role].states[state].found is Found.OVER:
                if state != "migrated" or self.machine.table.role == SOURCE:
                    self.journal.remove()
                self._guardian.dismiss()
        finally:
            self.journal.close()
            self._guardian.leave()


class _Doorway:
    """One agent at a time begins, so that two do not begin with the same process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._fd = open_directory(self._directory)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _refuse_twice(pid: int, directory: Path) -> None:
    """Raises where a journal says that something is still to be done with the process.

    As a source's, or a destination's that never ended: to finish that lets the process go on,
    which must not happen while it is frozen here to move on.
    """
    _refuse_while_unended(directory, lambda history: pid if _is_about(history, pid) else None)


def _refuse_beside_leftovers(plan: Plan, directory: Path) -> None:
    """Raises where the end of another migration to this host might undo what this one brings."""
    _refuse_while_unended(directory, lambda history: _would_undo(history, plan))


def _refuse_while_unended(directory: Path, concerns: Callable[[History], int | None]) -> None:
    """`concerns`: the PID of the process where a journal that is not over stands in the way."""
    for history in histories(directory):
        if TABLES[history.role].states[history.state].found is Found.OVER:
            continue
        pid = concerns(history)
        if pid is None:
            continue
        try:
            journal = Journal.open(history.id, history.role, directory)
        except JournalBusy:
            raise AlreadyMoving(pid=pid, id=history.id) from None
        if journal is not None:
            journal.close()
            raise Unfinished(pid=pid, id=history.id)


def _is_about(history: History, pid: int) -> bool:
    """Whether it is about this very process, not one that had its PID."""
    facts: dict[str, Any] = history.facts
    if facts.get("boot") != proc.boot_id():
        return False
    plan = facts.get("plan", {})
    if history.role == SOURCE:
        return bool(plan.get("pid") == pid and facts.get("born") == proc.born(pid))
    since = facts.get("ticks")  # before its restore
    return bool(since and pid in plan.get("tree", ()) and proc.born(pid) >= since)


def _would_undo(history: History, plan: Plan) -> int | None:
    """The PID of a process that was to come here, if its undoing would reach what `plan` brings.

    It drops the addresses that had been taken. What it kills it tells by PID and age alone where
    its agent died before it knew what was restored.
    """
    facts: dict[str, Any] = history.facts
    left = facts.get("plan", {})
    if history.role != DESTINATION:
        return None
    reached = False
    if history.entered("taking-over") is not None:
        addresses = {one.address for one in plan.addresses}
        reached = any(one["address"] in addresses for one in left.get("addresses", ()))
    if history.entered("restoring") is not None and facts.get("boot") == proc.boot_id():
        reached = reached or not set(plan.tree).isdisjoint(left.get("tree", ()))
    return int(left.get("pid", 0)) if reached else None
