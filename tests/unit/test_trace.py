"""The timeline of both hosts, as a viewer reads it."""

from __future__ import annotations

from orchestrator.migration import result as results
from orchestrator.trace import chrome
from tests.wire.scripted_agent import destination_report, source_report

ID = "20261124-120000-abcdef"


SENT = results.source_report(source_report())
TAKEN = results.destination_report(destination_report())
TIMELINE = results.timeline(SENT, TAKEN)


def merged() -> results.Json:
    made = results.empty(ID, "src", "dst", 5000)
    made["outcome"] = results.MIGRATED
    results.merge(made, SENT, TAKEN)
    return made


def test_both_hosts_are_on_one_clock() -> None:
    """The destination's is 50 s ahead in these reports; the lock is at 100.0 of the source's."""
    rows = [(one["role"], one["phase"], round(one["start_ms"])) for one in TIMELINE]
    assert rows == [
        ("source", "lock", -10), ("source", "freeze", 10), ("destination", "restore_process", 20),
    ]  # fmt: skip


def test_what_overlaps_has_rows_of_its_own() -> None:
    timeline = [
        {"role": "source", "phase": name, "start_ms": start, "ms": 10.0}
        for name, start in (("dump_process", 0.0), ("dump_streams", 5.0), ("ship", 10.0))
    ]
    events = [
        one
        for one in chrome(merged(), timeline)["traceEvents"]
        if one["ph"] == "X" and one["pid"] == 1
    ]
    assert [(one["name"], one["tid"], one["ts"], one["dur"]) for one in events] == [
        ("dump_process", 1, 0.0, 10000.0),
        ("dump_streams", 2, 5000.0, 10000.0),
        ("ship", 1, 10000.0, 10000.0),
    ]


def test_hosts_and_blackout_are_named() -> None:
    events = chrome(merged(), TIMELINE)["traceEvents"]
    names = [one["args"]["name"] for one in events if one["ph"] == "M"]
    assert names == ["source: src", "destination: dst"]
    (blackout,) = [one for one in events if one["name"] == "blackout"]
    assert blackout["dur"] == merged()["blackout_ms"] * 1000 > 0


def test_one_that_was_refused_has_none() -> None:
    assert results.timeline(None, None) == []
    events = chrome(results.empty(ID, "a", "b", 1), [])["traceEvents"]
    assert all(one["ph"] == "M" for one in events)
