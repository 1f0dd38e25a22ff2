"""What a drain came to: the one JSON object, and its exit status. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.errors import (
    EXIT_IN_DOUBT,
    EXIT_MIGRATED,
    EXIT_REFUSED,
    EXIT_ROLLED_BACK,
    EXIT_USAGE,
    AgentError,
)
from orchestrator.draining import states
from orchestrator.draining.journal import Item
from orchestrator.errors import told

DRAINED = "drained"  # all is moved, and well
NOTHING = "nothing-to-do"
READY = "ready"  # a dry run: all could move
INCOMPLETE = "incomplete"
REFUSED = "refused"  # nothing was moved
IN_DOUBT = "in-doubt"
INTERRUPTED = "interrupted"

_STATUS = {
    DRAINED: EXIT_MIGRATED,
    NOTHING: EXIT_MIGRATED,
    READY: EXIT_MIGRATED,
    INCOMPLETE: EXIT_ROLLED_BACK,
    INTERRUPTED: EXIT_ROLLED_BACK,
    REFUSED: EXIT_REFUSED,
    IN_DOUBT: EXIT_IN_DOUBT,
}
NOT_OVER = frozenset({INTERRUPTED})  # `--resume` goes on
Json = dict[str, Any]


def result(
    node: str,
    items: Iterable[Item],
    *,
    drain: str = "",
    dry_run: bool = False,
    cordoned: bool = False,
    interrupted: bool = False,
    error: AgentError | None = None,
) -> Json:
    """{"id", "node", "outcome", "dry_run", "cordoned", "workloads": [...], "error"}."""
    rows = list(items)
    return {
        "id": drain,
        "node": node,
        "outcome": _outcome(rows, dry_run, interrupted, error),
        "dry_run": dry_run,
        "cordoned": cordoned,
        "workloads": [one.model_dump(mode="json") for one in rows],
        "error": told(error) if error is not None else _first(rows),
    }


def _outcome(rows: list[Item], dry_run: bool, interrupted: bool, error: AgentError | None) -> str:
    found = {one.state for one in rows}
    if states.IN_DOUBT in found:
        return IN_DOUBT
    if rows and found == {states.IMMOVABLE}:
        return REFUSED
    if error is not None:
        return INCOMPLETE if found - {states.WAITING, states.IMMOVABLE} else REFUSED
    if dry_run:
        return REFUSED if states.IMMOVABLE in found else READY if rows else NOTHING
    if not rows:
        return NOTHING
    if interrupted and found & (states.RUNNING | {states.WAITING}):
        return INTERRUPTED
    return DRAINED if found <= {states.MOVED, states.GONE} else INCOMPLETE


def _first(rows: list[Item]) -> dict[str, str] | None:
    """The first workload's error, with its name."""
    for one in rows:
        if one.error is not None and one.state not in (states.MOVED, states.GONE):
            return {**one.error, "message": f"{one.key}: {one.error['message']}"}
    return None


def moved_back(error: dict[str, str] | None, node: str) -> dict[str, str] | None:
    """What was wrong at the destination, of a workload that is on its node again."""
    if error is None:
        return None
    hint = "Before the next drain, see why; the check is `health` in the playbook."
    return {**error, "message": f"{error['message']}; it was moved back to {node}", "hint": hint}


def exit_status(results: list[Json], errors: list[AgentError]) -> int:
    """Of all drains of a playbook: the most serious."""
    if any(one.exit_status == EXIT_USAGE for one in errors):
        return EXIT_USAGE
    return max((_STATUS[one["outcome"]] for one in results), default=EXIT_MIGRATED)
