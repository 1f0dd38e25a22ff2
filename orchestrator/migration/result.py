"""What a migration came to, as the one JSON object; from the reports of both agents. Pure."""

from __future__ import annotations

from typing import Any

from agent.errors import (
    EXIT_IN_DOUBT,
    EXIT_MIGRATED,
    EXIT_REFUSED,
    EXIT_ROLLED_BACK,
    EXIT_USAGE,
    AgentError,
)
from orchestrator.errors import from_wire
from orchestrator.refusals import Refusal

PHASES = (
    "check",
    "lock",
    "freeze",
    "dump_streams",
    "dump_process",
    "ship",
    "restore_streams",
    "restore_process",
    "commit",
    "take_over",
    "unlock",
    "replay",
)
MIGRATED, ROLLED_BACK, REFUSED, IN_DOUBT = "migrated", "rolled-back", "refused", "in-doubt"
_STATUSES = {
    MIGRATED: EXIT_MIGRATED,
    ROLLED_BACK: EXIT_ROLLED_BACK,
    REFUSED: EXIT_REFUSED,
    IN_DOUBT: EXIT_IN_DOUBT,
}
_NEVER_WOKEN = {"wake_ms": -1.0, "probes": 0}

Json = dict[str, Any]


def empty(migration_id: str, source: str, destination: str, pid: int) -> Json:
    """The object of a migration that has not begun, with every key."""
    return {
        "id": migration_id,
        "outcome": REFUSED,
        "error": None,
        "source": source,
        "destination": destination,
        "pid": pid,
        "blackout_ms": 0.0,
        "clock_error_ms": 0.0,
        "phases_ms": dict.fromkeys(PHASES, 0.0),
        "streams": [],
        "replayed_packets": 0,
        "bytes": {"memory": 0, "streams": 0, "files": 0},
    }


def described(error: AgentError, phase: str) -> Json:
    """{"code", "message", "hint", "phase"} of an error."""
    return {"code": error.code, "message": error.message, "hint": error.hint, "phase": phase}


def refused(refusals: list[Refusal]) -> Json:
    """The same of the first refusal, which says how many more there are."""
    first = refusals[0]
    more = len(refusals) - 1
    message = f"{first.message} (and {more} more; see `migrate check`)" if more else first.message
    return {"code": first.code, "message": message, "hint": first.hint, "phase": "check"}


def outcome_of(error: AgentError) -> str:
    """The outcome where an error ended all before the agents began."""
    return REFUSED if error.exit_status in (EXIT_REFUSED, EXIT_USAGE) else ROLLED_BACK


def exit_status(result: Json, error: AgentError | None = None) -> int:
    """The command's status; a usage error that was found late keeps its own."""
    if result["outcome"] == REFUSED and error is not None:
        return error.exit_status
    return _STATUSES[result["outcome"]]


def merge(result: Json, source: Json | None, destination: Json | None) -> None:
    """Fill `result` in from the reports (as `agent.source` and `agent.destination` make them)."""
    for report in (source, destination):
        if report is not None:
            for phase, ms in report["phases_ms"].items():
                if phase in result["phases_ms"]:
                    result["phases_ms"][phase] += float(ms)
    if destination is not None:
        result["replayed_packets"] = destination["replayed_packets"]
    if source is not None:
        result["bytes"] = source["bytes"]
        result["clock_error_ms"] = source["clock_error"] * 1000
        result["streams"] = _streams(source, destination)
        if destination is not None and destination["resumed_at"]:
            resumed = destination["resumed_at"] - source["clock_offset"]
            result["blackout_ms"] = (resumed - source["lock_at"]) * 1000
    if result["outcome"] != MIGRATED and result["error"] is None:
        result["error"] = _error(source) or _error(destination)


def _streams(source: Json, destination: Json | None) -> list[Json]:
    wakes = {(one["local"], one["remote"]): one for one in (destination or {}).get("wake", [])}
    streams = []
    for stream in source["streams"]:
        wake = wakes.get((stream["local"], stream["remote"]), _NEVER_WOKEN)
        streams.append({**stream, "wake_ms": wake["wake_ms"], "probes": wake["probes"]})
    return streams


def _error(report: Json | None) -> Json | None:
    wire = report and report["error"]
    return described(from_wire(wire), str(wire.get("phase", ""))) if wire else None
