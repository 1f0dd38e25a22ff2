"""The timeline of a migration in Chrome's trace format, for a viewer (chrome://tracing, Perfetto).

Source: "Trace Event Format" of the Chromium project; "X" is a complete event, "M" metadata.
"""

from __future__ import annotations

from typing import Any

from orchestrator.migration.result import Span

Json = dict[str, Any]
_HOSTS = ("source", "destination")


def chrome(result: Json, timeline: list[Span]) -> Json:
    """The events of a migration: a process a host, a row for each phase that overlaps another.

    Times are microseconds on the source's clock, from the beginning of the blackout.
    """
    events: list[Json] = []
    for number, role in enumerate(_HOSTS, 1):
        name = {"name": f"{role}: {result[role]}"}
        events.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": name})
        rows: list[float] = []  # when each row is free again
        spans = [one for one in timeline if one["role"] == role]
        for span in sorted(spans, key=lambda one: one["start_ms"]):
            start, end = span["start_ms"], span["start_ms"] + span["ms"]
            row = next((at for at, free in enumerate(rows) if free <= start), len(rows))
            rows[row : row + 1] = [end]
            event = {"ph": "X", "name": span["phase"], "pid": number, "tid": row + 1}
            events.append({**event, "ts": start * 1000, "dur": span["ms"] * 1000})
    if result["blackout_ms"]:
        whole = {"ph": "X", "name": "blackout", "pid": 0, "tid": 0, "ts": 0.0}
        events.append({**whole, "dur": result["blackout_ms"] * 1000})
    about = {name: result[name] for name in ("id", "outcome", "pid", "blackout_ms")}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
