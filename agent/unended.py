"""Whom a migration that has not ended on this host keeps from beginning another, or from a check.

A process of which something is still to be done must not be moved, continued or ended by anybody
but the one who ends that migration: there may be a second copy of it elsewhere.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from agent.errors import EXIT_REFUSED, AgentError
from agent.history import History
from agent.journal import DIRECTORY, Journal, JournalBusy, JournalError, histories
from agent.kernel import proc
from agent.plan import Plan
from agent.protocol import DESTINATION, SOURCE, TABLES, Found


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


def refuse_twice(pids: Collection[int], directory: Path = DIRECTORY) -> None:
    """Raises where a journal says that something is still to be done with one of the processes.

    As a source's, or a destination's that never ended: to finish that lets the process go on,
    which must not happen while it is frozen here to move on.
    """
    _refuse_while_unended(
        directory, lambda history: next((pid for pid in pids if _is_about(history, pid)), None)
    )


def refuse_looking(pids: Collection[int], directory: Path = DIRECTORY) -> None:
    """As `refuse_twice`, for one who only looks, and may be a user who cannot read the journals:
    what that user lacks is told with the rest."""
    try:
        refuse_twice(pids, directory)
    except JournalError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno != errno.EACCES:
            raise


def refuse_beside_leftovers(plan: Plan, directory: Path = DIRECTORY) -> None:
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
            if history.state == "in-doubt":  # nobody will tell its agent: it waits for `recover`
                raise Unfinished(pid=pid, id=history.id) from None
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
        root = plan.get("pid")
        if pid != root and pid not in plan.get("tree", ()):
            return False
        return bool(root and facts.get("born") == proc.born(root))  # of the others none is known
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
