"""What keeps one host's part of a migration safe: protocol, journal and guardian."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from agent import host_id
from agent.guardian import Guardian
from agent.journal import DIRECTORY, Journal, as_journal_error, open_directory
from agent.kernel import proc
from agent.plan import Plan
from agent.protocol import SOURCE, TABLES, Found, Machine
from agent.unended import refuse_beside_leftovers, refuse_twice


class Custody:
    """From the first line in the journal until all is over on this host."""

    def __init__(self, plan: Plan, role: str, directory: Path = DIRECTORY, **facts: object) -> None:
        """Begin; `facts` go into the journal. Raises `AlreadyMoving`, `Unfinished`, `OSError`,
        `JournalError`."""
        self._noted = 0.0
        with _Doorway(directory):
            if role == SOURCE:
                refuse_twice(plan.tree, directory)
            else:
                refuse_beside_leftovers(plan, directory)
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
