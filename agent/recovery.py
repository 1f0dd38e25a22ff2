"""Brings what a dead agent left to the end that the protocol gives it, or says why it cannot yet.

Used by the guardian on its own host, and by `migrate recover` with the other host's word. Whoever
acts holds the journal's lock, so it is one at a time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.history import History
from agent.journal import DIRECTORY, Journal, JournalBusy, JournalDamaged, own_host, read
from agent.kernel import proc
from agent.protocol import (
    DESTINATION,
    SETTLED,
    SOURCE,
    TABLES,
    Found,
    Log,
    Machine,
    ending,
    may_follow,
    taken_over,
)
from agent.successor import Successor

_POLL = 0.05  # seconds between tries for the journal
_GRACE = 10.0  # seconds for an agent that was asked to go


class RecoveryIncomplete(AgentError):
    code = "recovery-incomplete"
    template = "migration {id} could not be ended at its {role}: {detail}"
    hint_template = "Mend that and run `migrate recover {id}` again."
    exit_status = EXIT_IN_DOUBT


@dataclass(frozen=True, slots=True)
class Settled:
    """What was found on one host, and what it is now."""

    role: str
    found: str  # the state in the journal; "" where there is none
    state: str  # the state now
    word: str | None  # for the other host; None: none yet
    living: list[int]  # PIDs of the copy on this host
    lost: bool = False  # the copy that should go on ended before all was over
    host_id: str = ""  # of this host; see `agent.host_id`

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


def settle(
    migration_id: str, role: str, word: str | None = None, directory: Path = DIRECTORY
) -> Settled:
    """Undo, finish, or go by the other host's `word`. Blocks.

    Where there is no journal, the answer holds only if this is the host that took part.

    A journal that is over is removed, but for a destination's that has the process, for the source
    to ask, and for a source's whose copy is gone, so that somebody is told. Those are kept until
    `forget`. A destination's without a line counts as damaged, unless its source has come to its
    end (`SETTLED`). Raises `JournalBusy` while its agent lives, `RecoveryIncomplete`,
    `JournalError`.
    """
    table = TABLES[role]
    here = own_host(directory)
    journal = Journal.open(migration_id, role, directory)
    if journal is None:
        return Settled(role, "", "", table.unheard, [], host_id=here)
    try:
        return replace(_settle(journal, word), host_id=here)
    finally:
        journal.close()


def _settle(journal: Journal, word: str | None) -> Settled:
    walk = settling(journal, Successor, word)
    while True:
        try:
            next(walk)
        except StopIteration as done:
            settled: Settled = done.value
            return settled


class Acts(Protocol):
    """What does a dead agent's actions: `Successor`, or the simulator's."""

    @property
    def living(self) -> list[int]: ...
    @property
    def same_boot(self) -> bool: ...
    @property
    def complete(self) -> bool: ...
    def do(self, action: str) -> None: ...
    def wipe(self) -> None: ...


class Kept(Protocol):
    """A journal, whose lock is held: `Journal`, or the simulator's."""

    @property
    def history(self) -> History: ...
    def record(self, state: str, log: Log, facts: dict[str, Any]) -> None: ...
    def remove(self) -> None: ...


def settling(
    journal: Kept, successor_of: Callable[[History], Acts], word: str | None
) -> Generator[str, None, Settled]:
    """`settle`, a step at a time: yields after each that was taken, its name. No I/O of its own.

    A step that fails does not keep those that may follow it from being taken. Raises
    `RecoveryIncomplete`.
    """
    history = journal.history
    table = TABLES[history.role]
    found, lost = history.state, False
    machine = Machine(table, journal.record, found)
    if not history.entries:  # its agent died before it had written down what it was to do
        if history.role == DESTINATION and word != SETTLED:
            # A source that has handed over was answered by one which had written that: then this
            # is damage, and "failed" would make a second copy run, now or when it asks later.
            path = str(DIRECTORY / f"{history.id}-{history.role}")
            raise JournalDamaged(path=path, detail="no line of it is left that can be read")
        journal.remove()
        return Settled(history.role, "", "", table.unheard, [])
    successor = successor_of(history)
    waits = table.states[found].found is Found.WAIT
    if waits and (not successor.living or successor.complete):
        machine.back("filled")  # nothing is needed any more
    actions = taken_over(machine, word)
    waits = waits and machine.state == found
    if waits and "resumed" in history.facts:
        actions = None
    if actions is not None:
        yield machine.state
        problems: dict[str, Exception] = {}
        for action in actions:
            if not may_follow(action, problems):
                continue
            try:
                successor.do(action)
            except Exception as error:
                problems[action] = error
            yield action
        if problems:
            detail = "; ".join(f"{action}: {error}" for action, error in problems.items())
            raise RecoveryIncomplete(id=history.id, role=history.role, detail=detail)
        if waits:
            with contextlib.suppress(Exception):  # else it is done once more
                journal.record("", Log.NOTE, {"resumed": True})
        else:
            machine.back(ending(table, machine.state))
        yield machine.state
    state = table.states[machine.state]
    living = successor.living
    if state.found is Found.OVER:
        successor.wipe()
        has_it = history.role == DESTINATION and machine.state == "migrated"
        goes_on = has_it or (history.role == SOURCE and machine.state == "rolled-back")
        # What was over while its host was up may have ended since, as any process does.
        ended_since = found == "migrated" and successor.same_boot and "lost" not in history.facts
        lost = goes_on and not living and not ended_since
        if not (has_it or lost):
            journal.remove()
        elif lost:
            with contextlib.suppress(Exception):  # for one who asks again
                journal.record("", Log.NOTE, {"lost": True})
    return Settled(history.role, found, machine.state, state.word, living, lost)


def settle_when_free(
    migration_id: str,
    role: str,
    word: str | None,
    patience: float,
    directory: Path = DIRECTORY,
) -> Settled:
    """As `settle`, but wait `patience` seconds for whoever is at work.

    An agent that is in doubt has nobody left to hear from (its orchestrator may be cut off without
    its knowing): it is asked to go, and killed if it does not. There is nothing it could leave
    half done.
    """
    begin = time.monotonic()
    asked: float | None = None
    while True:
        try:
            return settle(migration_id, role, word, directory)
        except JournalBusy:
            now = time.monotonic()
            if now - begin > patience:
                raise
            forced = asked is not None and now - asked > _GRACE
            if _send_away(
                migration_id, role, directory, signal.SIGKILL if forced else signal.SIGTERM
            ):
                asked = asked or now
            time.sleep(_POLL)


def _send_away(migration_id: str, role: str, directory: Path, number: int) -> bool:
    """Whether its agent is there, in doubt."""
    try:
        history = read(directory / f"{migration_id}-{role}", migration_id, role)
    except FileNotFoundError:
        return False
    agent, began = history.facts.get("agent", 0), history.facts.get("agent_born", 0)
    if history.state != "in-doubt" or not began or proc.born(agent) != began:
        return False
    with contextlib.suppress(OSError):
        os.kill(agent, number)
    return True


def forget(migration_id: str, directory: Path = DIRECTORY) -> bool:
    """All is over, and told: its journal is of no more use. Whether there was one.

    Raises `JournalBusy`.
    """
    forgotten = False
    for role, table in TABLES.items():
        journal = Journal.open(migration_id, role, directory)
        if journal is None:
            continue
        try:
            over = table.states[journal.history.state].found is Found.OVER
            if over and (role == SOURCE or journal.history.entries):
                journal.remove()
                forgotten = True
        finally:
            journal.close()
    return forgotten
