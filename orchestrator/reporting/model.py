"""What a report says, from a record. Pure.

Times are milliseconds on the source's clock from its lock, with which the blackout begins.

A peer's stall is what passes between that lock and the first segment that is heard from it at the
destination: the blackout and its wake time. It is an upper bound for what the migration adds: the
wake time is counted from when its stream was released, a little before the process was resumed, and
a peer that had nothing to say meanwhile has felt nothing. Where the migration was undone it is the
time from the lock until the undo was over.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any, TypedDict

from orchestrator.migration.account import Account
from orchestrator.migration.result import MIGRATED, ROLL_BACK, ROLLED_BACK, Json
from orchestrator.records import Record

UNFINISHED = "unfinished"
_EMPTY: Account = {
    "command": "", "comm": "", "processes": 0, "memory_mode": "", "addresses": [],
    "took_ms": 0.0, "timeline": [], "heard": [], "notes": [],
}  # fmt: skip
_LONGEST = 1e9  # milliseconds; more is no time of a migration


class Stall(TypedDict):
    """Of the streams whose stall is known."""

    known: int
    silent: int  # the peer has not answered
    least_ms: float
    median_ms: float
    p99_ms: float
    most_ms: float


def report(record: Record) -> Json:
    """The report, with every key; what is not known is None, or empty."""
    result: Json = record["result"] or {}
    account = record["account"] or _EMPTY
    timeline = [one for one in account["timeline"] if _sane(one["start_ms"], one["ms"])]
    heard = [one for one in account["heard"] if _sane(one["start_ms"], one["ms"])]
    outcome = result.get("outcome", UNFINISHED)
    blackout = _time(result.get("blackout_ms", 0.0)) or None
    held = _undone(timeline) if outcome == ROLLED_BACK else None
    streams = _streams(result.get("streams", []), outcome, blackout, held)
    memory = result.get("memory") or {"mode": account["memory_mode"], "why": ""}
    return {
        **{name: record[name] for name in ("id", "source", "destination", "pid", "begun")},
        **{name: account[name] for name in (
            "comm", "command", "processes", "addresses", "took_ms", "notes",
        )},
        "memory": memory,
        "outcome": outcome,
        "recovered": bool(result.get("recovered")),
        "failure": result.get("error"),
        "blackout_ms": blackout,
        "clock_error_ms": _time(result.get("clock_error_ms", 0.0)),
        "undone_ms": held,
        "phases_ms": {name: ms for name, ms in result.get("phases_ms", {}).items() if ms},
        "timeline": timeline,
        "heard": heard,
        "stall": _summary(streams),
        "queues": {
            name: sum(one[name] for one in streams) for name in ("receive_queue", "sent", "unsent")
        },
        "streams": streams,
        "bytes": {**result.get("bytes", {}), "sync": result.get("sync_bytes", 0)},
        "rounds": result.get("rounds", []),
        "replayed_packets": result.get("replayed_packets", 0),
    }  # fmt: skip


def _streams(
    found: list[Json], outcome: str, blackout: float | None, undone: float | None
) -> list[Json]:
    """The slowest first, and before them who has not answered."""
    made = []
    for one in found:
        wake = _time(one["wake_ms"]) if one["wake_ms"] >= 0 else None
        stall = undone
        if outcome == MIGRATED:
            stall = None if wake is None or blackout is None else blackout + wake
        made.append({
            **{name: one[name] for name in ("local", "remote", "state", "receive_queue", "unsent",
                                            "probes")},
            "sent": max(one["send_queue"] - one["unsent"], 0),
            "wake_ms": wake if outcome == MIGRATED else None,
            "stall_ms": stall,
        })  # fmt: skip
    return sorted(made, key=lambda one: -math.inf if one["stall_ms"] is None else -one["stall_ms"])


def _summary(streams: list[Json]) -> Stall | None:
    known = sorted(one["stall_ms"] for one in streams if one["stall_ms"] is not None)
    if not known:
        return None
    return Stall(
        known=len(known),
        silent=len(streams) - len(known),
        least_ms=known[0],
        median_ms=statistics.median(known),
        p99_ms=known[math.ceil(0.99 * len(known)) - 1],
        most_ms=known[-1],
    )


def _undone(timeline: Iterable[Any]) -> float | None:
    """When the source had undone its part."""
    ends = [one["start_ms"] + one["ms"] for one in timeline if one["phase"] == ROLL_BACK]
    return max(ends, default=0.0) or None


def _sane(*times: float) -> bool:
    return all(math.isfinite(one) and abs(one) < _LONGEST for one in times)


def _time(ms: float) -> float:
    """What a host says, as far as it can be."""
    return float(ms) if _sane(ms) and ms > 0 else 0.0
