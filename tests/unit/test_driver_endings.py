"""How a run ends where a report is missing, malformed or contradicts the other; faults of ours.

tests/wire/test_driver_run.py has the order in which reports come, and Ctrl-C.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from agent.errors import AgentError, FaultInjected, PeerLost
from agent.source_host import RollbackIncomplete
from orchestrator.migration.result import Json
from tests.support.polling import settled, until
from tests.wire.scripted_agent import (
    Answer,
    ScriptedAgent,
    destination_report,
    source_report,
)
from tests.wire.scripted_run import Setting, dying, held, never

LINK_LOST = PeerLost(phase="commit", detail="gone")
FAULT = FaultInjected(point="ship")
HALF = RollbackIncomplete(detail="unlock: no", pid=5000)

DIES, SILENT, MALFORMED = "dies", "silent", "malformed"


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    setting = Setting(monkeypatch)
    setting.patience()
    yield setting


def script(agent: ScriptedAgent, call: str, answer: Any) -> None:
    answers: dict[str, Answer] = {
        DIES: dying(agent),
        SILENT: never,
        MALFORMED: {"outcome": "migrated"},
    }
    agent.answers[call] = answers[answer] if isinstance(answer, str) else answer


async def ends(
    setting: Setting, source: Any, destination: Any, resolve: Any = None
) -> tuple[str, int, Json]:
    """(outcome, exit status, the whole result) of a run with these reports."""
    script(setting.source, "source.run", source)
    script(setting.destination, "destination.run", destination)
    if resolve is not None:
        script(setting.source, "source.resolve", resolve)
    result = await setting.migrate()
    assert setting.source.closed and setting.destination.closed
    assert set(result["phases_ms"]) and all(
        isinstance(ms, float) for ms in result["phases_ms"].values()
    )
    if result["outcome"] == "migrated":
        assert result["error"] is None
    else:
        assert result["error"]["message"] and result["error"]["hint"]
    return result["outcome"], setting.status, result


@pytest.mark.parametrize(
    ("here", "there"), [("migrated", "rolled-back"), ("rolled-back", "migrated")]
)
async def test_reports_that_contradict_each_other(setting: Setting, here: str, there: str) -> None:
    """It must never be; if it is, nobody may be told that all is well."""
    outcome, status, result = await ends(setting, source_report(here), destination_report(there))
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, "in-doubt")
    assert f"src says {here}, dst {there}" in result["error"]["message"]


# --- the source is in doubt


@pytest.mark.parametrize("destination", [DIES, SILENT, MALFORMED, AgentError(detail="broken")])
async def test_a_doubt_that_the_destination_cannot_end(setting: Setting, destination: Any) -> None:
    outcome, status, result = await ends(setting, source_report("in-doubt", LINK_LOST), destination)
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, "in-doubt")
    assert "source.resolve" not in setting.source.calls
    assert "src" in result["error"]["hint"] and "dst" in result["error"]["hint"]
    assert len(result["streams"]) == 2  # what the source knew is told


@pytest.mark.parametrize("resolve", [DIES, MALFORMED, AgentError(detail="broken")])
async def test_the_destination_has_it_and_the_source_is_lost_while_it_is_told(
    setting: Setting, resolve: Any
) -> None:
    """Its copy stays frozen and locked: somebody has to look."""
    outcome, status, result = await ends(
        setting, source_report("in-doubt", LINK_LOST), destination_report(), resolve
    )
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, "in-doubt")
    assert "dst has it" in result["error"]["message"]
    assert len(result["streams"]) == 2


@pytest.mark.parametrize(
    ("resolve", "code"),
    [(DIES, "in-doubt"), (MALFORMED, "in-doubt"), (HALF, "rollback-incomplete")],
)
async def test_the_source_should_go_back_and_cannot(
    setting: Setting, resolve: Any, code: str
) -> None:
    outcome, status, result = await ends(
        setting,
        source_report("in-doubt", LINK_LOST),
        destination_report("rolled-back", FAULT),
        resolve,
    )
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, code)


# --- the source is lost


@pytest.mark.parametrize("source", [DIES, MALFORMED, AgentError(detail="broken")])
async def test_without_the_source_the_destinations_success_counts(
    setting: Setting, source: Any
) -> None:
    outcome, status, result = await ends(setting, source, destination_report())
    assert (outcome, status) == ("migrated", 0)
    assert any("stopped copy at src" in note for note in setting.told.notes)
    assert result["replayed_packets"] == 3 and result["streams"] == []


@pytest.mark.parametrize("source", [DIES, MALFORMED, AgentError(detail="broken")])
async def test_without_the_source_a_rollback_is_not_known_to_be_complete(
    setting: Setting, source: Any
) -> None:
    outcome, status, result = await ends(setting, source, destination_report("rolled-back", FAULT))
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, "in-doubt")
    assert "src" in result["error"]["hint"] and "5000" in result["error"]["hint"]


@pytest.mark.parametrize("source", [DIES, MALFORMED, HALF])
@pytest.mark.parametrize("destination", [DIES, SILENT, MALFORMED])
async def test_neither_can_say(setting: Setting, source: Any, destination: Any) -> None:
    outcome, status, result = await ends(setting, source, destination)
    assert (outcome, status, result["error"]["code"]) == ("in-doubt", 4, "in-doubt")
    assert "dst" in result["error"]["message"] or destination == MALFORMED


# --- the destination is lost


@pytest.mark.parametrize("destination", [DIES, SILENT, MALFORMED, AgentError(detail="broken")])
@pytest.mark.parametrize(("outcome", "status"), [("migrated", 0), ("rolled-back", 1)])
async def test_without_the_destination_the_source_knows(
    setting: Setting, destination: Any, outcome: str, status: int
) -> None:
    """It has the destination's word, or has gone back without it."""
    error = None if outcome == "migrated" else LINK_LOST
    found = await ends(setting, source_report(outcome, error), destination)
    assert found[:2] == (outcome, status)
    assert any("no report" in note for note in setting.told.notes)
    assert [one["wake_ms"] for one in found[2]["streams"]] == [-1.0, -1.0]


async def test_the_source_is_waited_for_however_long_it_takes(setting: Setting) -> None:
    """Only its agent may end a blackout; there is a limit of its own for that."""
    gate, setting.source.answers["source.run"] = held(source_report("rolled-back", LINK_LOST))
    setting.destination.answers["destination.run"] = dying(setting.destination)
    running = setting.start()
    await setting.source.called("source.run")
    await settled(setting.destination.server.disconnected)
    gate.set()
    assert (await running)["outcome"] == "rolled-back"


# --- a link that is relayed through here


async def test_what_is_relayed_to_one_who_is_gone_ends_the_link(setting: Setting) -> None:
    async def ship(**_: Any) -> Json:
        await until(lambda: setting.destination.server.disconnected.is_set())
        await asyncio.sleep(0)
        while not setting.source.relayed:
            setting.source.server.send_event("relay", {"data": b"abc"})
            await asyncio.sleep(0.001)
        return source_report("rolled-back", LINK_LOST, relayed=True)

    setting.source.answers["source.run"] = ship
    setting.destination.answers["destination.run"] = dying(setting.destination)
    assert (await setting.migrate())["outcome"] == "rolled-back"
    assert set(setting.source.relayed) == {b""}


async def test_a_link_of_their_own_is_left_alone_when_a_session_is_lost(
    setting: Setting,
) -> None:
    """They go on without us; an end that we invented would break what works."""
    gate, setting.source.answers["source.run"] = held(source_report())
    setting.destination.answers["destination.run"] = dying(setting.destination)
    running = setting.start()
    await settled(setting.destination.server.disconnected)
    await until(lambda: running.done() or setting.source.calls[-1] == "source.run")
    gate.set()
    assert (await running)["outcome"] == "migrated"
    assert setting.source.relayed == []


# --- faults of our own


async def test_a_fault_of_ours_before_the_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise KeyError("run")

    monkeypatch.setattr("orchestrator.migration.driver.Run", run)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "internal")
    assert "KeyError" in result["error"]["message"] and setting.status == 1
    assert setting.source.closed and setting.destination.closed


async def test_a_fault_of_ours_in_the_run_leaves_no_false_certainty(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("orchestrator.migration.result.merge", broken)
    result = await setting.migrate()
    assert (result["outcome"], setting.status) == ("in-doubt", 4)
    assert "ZeroDivisionError" in result["error"]["message"]
    assert setting.source.closed and setting.destination.closed


@pytest.mark.parametrize("facts", [{}, {"identity": 5}])
async def test_facts_that_are_malformed_are_a_refusal(setting: Setting, facts: Json) -> None:
    setting.source.answers["probe.host"] = facts
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "protocol")
    assert setting.status == 3


async def test_events_that_are_malformed_are_passed_over(setting: Setting) -> None:
    async def run(**_: Any) -> Json:
        for data in ({}, {"name": 5}, {"name": "lock", "ms": "long"}, {"done": None}):
            setting.source.server.send_event("phase", data)
            setting.source.server.send_event("progress", data)
        return source_report()

    setting.source.answers["source.run"] = run
    assert (await setting.migrate())["outcome"] == "migrated"
    assert setting.told.phases == [] and setting.told.bytes == []
