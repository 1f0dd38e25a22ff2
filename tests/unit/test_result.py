"""The one JSON object, made of the reports of both agents."""

from __future__ import annotations

import copy
import json

import pytest

from agent.errors import (
    AgentError,
    BlackoutExceeded,
    Cancelled,
    FaultInjected,
    PeerLost,
    ProtocolError,
)
from agent.fault import BadFault
from orchestrator.errors import HostUnreachable, OutcomeUnknown, UsageProblem
from orchestrator.migration.result import (
    IN_DOUBT,
    MIGRATED,
    PHASES,
    REFUSED,
    ROLLED_BACK,
    Json,
    described,
    empty,
    exit_status,
    filled,
    merge,
    outcome_of,
    refused,
    timeline,
)
from orchestrator.migration.result import source_report as checked_source
from orchestrator.refusals import Refusal
from tests.wire.scripted_agent import (
    DESTINATION_PHASES,
    SOURCE_PHASES,
    destination_report,
    source_report,
    stream,
    wake,
)


def merged(outcome: str, source: Json | None, destination: Json | None) -> Json:
    result = empty("20261123-134501-7f3a9c", "src", "dst", 4711)
    result["outcome"] = outcome
    result["phases_ms"]["check"] = 1.5
    given = copy.deepcopy((source, destination))
    merge(result, source, destination)
    assert (source, destination) == given, "a report was changed"
    json.dumps(result, allow_nan=False)
    return result


def test_a_result_has_every_key_from_the_start() -> None:
    result = empty("id", "src", "dst", 1)
    assert list(result["phases_ms"]) == list(PHASES) and len(PHASES) == 12
    assert set(result) == {
        "id", "outcome", "error", "source", "destination", "pid", "blackout_ms",
        "clock_error_ms", "phases_ms", "streams", "replayed_packets", "bytes", "memory",
    }  # fmt: skip
    assert result["bytes"] == {"memory": 0, "streams": 0, "files": 0}
    assert merged(MIGRATED, source_report(), destination_report()).keys() == result.keys()


def test_all_phases_of_both_hosts() -> None:
    result = merged(MIGRATED, source_report(), destination_report())
    assert result["phases_ms"] == {"check": 1.5, **SOURCE_PHASES, **DESTINATION_PHASES}
    assert all(ms > 0 for ms in result["phases_ms"].values())


def test_a_phase_of_both_hosts_is_summed_and_an_unknown_one_left_out() -> None:
    source = source_report(phases_ms={"lock": 2.0, "tea": 9.0})
    destination = destination_report(phases_ms={"lock": 3, "unlock": 4})
    phases = merged(MIGRATED, source, destination)["phases_ms"]
    assert phases["lock"] == 5.0 and phases["unlock"] == 4.0
    assert list(phases) == list(PHASES)
    assert all(isinstance(ms, float) for ms in phases.values())


def test_memory_that_came_by_several_agents_took_from_the_resume_to_the_end() -> None:
    taken = destination_report(
        "running", phases_ms={"post_copy": 100.0}, spans=[["post_copy", 150.1, 0.1]]
    )
    result, spans = empty("1", "src", "dst", 5), timeline(source_report(), taken)
    merge(result, None, taken)
    filled(result, spans, 2.5)
    assert result["phases_ms"]["post_copy"] == 2500.0
    assert [one["ms"] for one in spans if one["phase"] == "post_copy"] == [2500.0]


def test_streams_are_joined_by_their_ends() -> None:
    source = source_report(streams=[stream(1), stream(2), stream(3)])
    destination = destination_report(wake=[wake(3, 7.5, 2), wake(1, 0.25), wake(9, 1.0)])
    streams = merged(MIGRATED, source, destination)["streams"]
    assert streams == [
        {**stream(1), "wake_ms": 0.25, "probes": 1},
        {**stream(2), "wake_ms": -1.0, "probes": 0},
        {**stream(3), "wake_ms": 7.5, "probes": 2},
    ]


def test_the_blackout_is_measured_over_two_clocks() -> None:
    result = merged(MIGRATED, source_report(), destination_report())
    assert result["blackout_ms"] == pytest.approx(40.0)  # 150.04 there is 100.04 here
    assert result["clock_error_ms"] == pytest.approx(0.2)
    assert result["replayed_packets"] == 3
    assert result["bytes"] == {"memory": 5 << 20, "streams": 42, "files": 7000}


ROUNDS = [{"bytes": 900 << 20, "ms": 812.5}, {"bytes": 0, "ms": 3}]


def test_the_rounds_of_memory_that_went_ahead() -> None:
    assert "rounds" not in merged(MIGRATED, source_report(), destination_report())
    told = checked_source(source_report(rounds=ROUNDS))
    assert merged(MIGRATED, dict(told), destination_report())["rounds"] == ROUNDS
    assert "rounds" not in merged(MIGRATED, None, destination_report())
    assert (
        merged(ROLLED_BACK, source_report("rolled-back", rounds=ROUNDS), None)["rounds"] == ROUNDS
    )


@pytest.mark.parametrize("rounds", [
    None, {}, "x", [None], [[1, 2]], [{}], [{"bytes": 1}], [{"bytes": "1", "ms": 1.0}],
    [{"bytes": 1.5, "ms": 1.0}], [{"bytes": 1, "ms": None}], [{"bytes": 1, "ms": float("nan")}],
    [{"bytes": 1, "ms": 1.0, "more": 1}],
], ids=repr)  # fmt: skip
def test_rounds_that_are_none(rounds: object) -> None:
    with pytest.raises(ProtocolError):
        checked_source(source_report(rounds=rounds))


def test_without_the_destinations_report_no_peer_woke_and_no_blackout_is_known() -> None:
    result = merged(MIGRATED, source_report(), None)
    assert result["blackout_ms"] == 0.0
    assert [one["wake_ms"] for one in result["streams"]] == [-1.0, -1.0]
    assert result["error"] is None


def test_without_the_sources_report() -> None:
    result = merged(MIGRATED, None, destination_report())
    assert result["streams"] == [] and result["blackout_ms"] == 0.0
    assert result["replayed_packets"] == 3
    assert result["phases_ms"]["commit"] == DESTINATION_PHASES["commit"]


def test_rolled_back_there_is_no_blackout_to_tell() -> None:
    error = FaultInjected(point="ship")
    result = merged(ROLLED_BACK, source_report("rolled-back", error), destination_report("undone"))
    assert result["blackout_ms"] == 0.0
    assert result["error"] == described(error, "dump_process")


def test_the_sources_error_counts_before_the_destinations() -> None:
    here, there = FaultInjected(point="ship"), PeerLost(phase="ship", detail="gone")
    reports = source_report("rolled-back", here), destination_report("rolled-back", there)
    error = merged(ROLLED_BACK, *reports)["error"]
    assert (error["code"], error["phase"]) == ("fault", "dump_process")
    assert error["message"] == here.message and error["hint"] == here.hint


def test_the_destinations_error_where_the_source_has_none() -> None:
    there = BlackoutExceeded(limit_s=10.0, phase="ship")
    reports = source_report("rolled-back"), destination_report("rolled-back", there)
    error = merged(ROLLED_BACK, *reports)["error"]
    assert (error["code"], error["phase"]) == ("blackout-exceeded", "restore_process")


def test_an_error_known_already_stays() -> None:
    result = empty("id", "src", "dst", 1)
    known = described(FaultInjected(point="x"), "commit")
    result.update(outcome=IN_DOUBT, error=known)
    merge(result, source_report("in-doubt", PeerLost(phase="commit", detail="gone")), None)
    assert result["error"] == known
    assert result["outcome"] == IN_DOUBT


def test_what_went_wrong_on_the_way_is_no_error_of_a_success() -> None:
    source = source_report("migrated", PeerLost(phase="commit", detail="gone"))
    assert merged(MIGRATED, source, destination_report())["error"] is None


def test_an_error_of_an_unknown_class() -> None:
    report = source_report("rolled-back", error=None)
    report["error"] = {"code": "brand-new", "fields": {"x": 1}, "phase": "ship"}
    error = merged(ROLLED_BACK, report, None)["error"]
    assert error["phase"] == "ship" and "brand-new" in error["message"]


UNKNOWN = OutcomeUnknown(detail="gone", pid=1, source="src", destination="dst")


@pytest.mark.parametrize(
    "error, outcome",
    [
        (HostUnreachable(host="src", detail="gone"), REFUSED),
        (UsageProblem(detail="no"), REFUSED),
        (BadFault(fault="x"), REFUSED),
        (Cancelled(phase="check"), ROLLED_BACK),
        (AgentError(detail="a fault"), ROLLED_BACK),
    ],
    ids=lambda one: getattr(one, "code", one),
)
def test_the_outcome_of_an_early_error_and_its_status(error: AgentError, outcome: str) -> None:
    assert outcome_of(error) == outcome
    assert exit_status({"outcome": outcome_of(error)}, error) == error.exit_status


@pytest.mark.parametrize(
    "outcome, status", [(MIGRATED, 0), (ROLLED_BACK, 1), (REFUSED, 3), (IN_DOUBT, 4)]
)
def test_exit_statuses(outcome: str, status: int) -> None:
    assert exit_status({"outcome": outcome}) == status


def test_an_in_doubt_error_has_the_status_of_doubt() -> None:
    assert exit_status({"outcome": IN_DOUBT}, UNKNOWN) == UNKNOWN.exit_status == 4
    assert "src" in UNKNOWN.hint and "dst" in UNKNOWN.hint


def test_the_first_refusal_says_how_many_more_there_are() -> None:
    first, second = Refusal("a", "A is so", "do A"), Refusal("b", "B is so", "do B")
    assert refused([first]) == {"code": "a", "message": "A is so", "hint": "do A", "phase": "check"}
    assert refused([first, second])["message"] == "A is so (and 1 more; see `migrate check`)"
