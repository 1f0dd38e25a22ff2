"""The run, with agents that report, fail, die and stay silent in every order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.errors import AgentError, Cancelled, FaultInjected, PeerLost
from agent.source_host import RollbackIncomplete
from orchestrator.migration.result import Json
from tests.support.polling import until
from tests.wire.scripted_agent import ScriptedAgent, destination_report, source_report
from tests.wire.scripted_run import Setting, dying, held, never

GONE = PeerLost(phase="commit", detail="the other agent has gone")
UNDONE = destination_report("rolled-back", GONE)
DOUBT = source_report("in-doubt", GONE)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    made = Setting(monkeypatch)
    made.patience()
    return made


def shown(setting: Setting, result: Json) -> tuple[str, str | None, int]:
    """Outcome, code of the error, exit status; both agents must have been let go."""
    assert setting.source.closed and setting.destination.closed
    error = result["error"]
    return result["outcome"], error and error["code"], setting.status


async def run(setting: Setting, source: Any, destination: Any) -> tuple[str, str | None, int]:
    setting.source.answers["source.run"] = source
    setting.destination.answers["destination.run"] = destination
    return shown(setting, await setting.migrate())


# --- a failure that both sides report


@pytest.mark.parametrize("first", ["source", "destination"])
async def test_a_failure_of_either_order_is_rolled_back(setting: Setting, first: str) -> None:
    setting.patience(other_side=10)
    error = FaultInjected(point="dump_process")
    source, answer = held(source_report("rolled-back", error))
    setting.source.answers["source.run"] = answer
    destination, answer = held(UNDONE)
    setting.destination.answers["destination.run"] = answer
    running = setting.start()
    await setting.source.called("source.run")
    await setting.destination.called("destination.run")
    order = [source, destination] if first == "source" else [destination, source]
    order[0].set()
    await asyncio.sleep(0)
    assert not running.done()
    order[1].set()
    result = await running
    assert shown(setting, result) == ("rolled-back", "fault", 1)
    assert result["error"]["phase"] == "dump_process"


async def test_a_destination_that_stays_silent_does_not_hold_up_a_rollback(
    setting: Setting,
) -> None:
    report = source_report("rolled-back", FaultInjected(point="ship"))
    assert await run(setting, report, never) == ("rolled-back", "fault", 1)


async def test_a_destination_that_gets_on_is_waited_for(setting: Setting) -> None:
    """Its memory fills in after the commit: that may take longer than any silence may."""
    patience = 0.3
    setting.patience(other_side=patience)
    now = asyncio.get_running_loop().time
    took = []

    async def fill(**_: Any) -> Json:
        begin = now()
        while (done := now() - begin) < 4 * patience:
            progress = {"what": "fill", "done": int(done * 1000), "total": int(4000 * patience)}
            setting.destination.server.send_event("progress", progress)
            await asyncio.sleep(patience / 30)
        took.append(done)
        return destination_report()

    assert await run(setting, source_report(), fill) == ("migrated", None, 0)
    assert took and took[0] >= 4 * patience
    assert setting.driver._result["phases_ms"]["commit"] > 0, "its report has come"
    assert setting.told.notes == []


async def test_a_destination_that_gets_on_no_more(setting: Setting) -> None:
    setting.patience(other_side=0.05)

    async def stop(**_: Any) -> None:
        progress = {"what": "fill", "done": 1, "total": 2}
        setting.destination.server.send_event("progress", progress)
        await never()

    assert await run(setting, source_report(), stop) == ("migrated", None, 0)
    assert any("no report" in note for note in setting.told.notes)


async def test_a_destination_that_stays_silent_after_the_commit(setting: Setting) -> None:
    assert await run(setting, source_report(), never) == ("migrated", None, 0)


# --- the destination dies


async def test_the_destination_dies_before_the_commit(setting: Setting) -> None:
    error = PeerLost(phase="restore_process", detail="the other agent has gone")
    died = dying(setting.destination)
    outcome = await run(setting, source_report("rolled-back", error), died)
    assert outcome == ("rolled-back", "link-lost", 1)


async def test_the_destination_dies_after_the_commit(setting: Setting) -> None:
    died = dying(setting.destination)
    assert await run(setting, source_report(), died) == ("migrated", None, 0)


async def test_the_destination_dies_at_the_commit(setting: Setting) -> None:
    """Nobody knows how far it came."""
    assert await run(setting, DOUBT, dying(setting.destination)) == ("in-doubt", "in-doubt", 4)
    assert "source.resolve" not in setting.source.calls
    message = setting.driver.error
    assert message is not None and "the agent on dst ended" in message.message


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_the_end_of_one_is_told_to_the_other_where_only_we_link_them(
    setting: Setting, who: str
) -> None:
    """Relayed, the survivor sees no connection break."""
    dead, other = setting.source, setting.destination
    if who == "destination":
        dead, other = other, dead

    async def die(**_: Any) -> None:
        dead.server.send_event("relay", {"data": b"x"})
        await until(lambda: other.relayed)
        dead.die()

    async def survive(**_: Any) -> Json:
        await until(lambda: other.relayed[-1:] == [b""])
        return UNDONE if other is setting.destination else source_report("rolled-back", GONE)

    setting.patience(10, 10)
    agents: tuple[Any, Any] = (die, survive) if who == "source" else (survive, die)
    outcome = await run(setting, *agents)
    assert other.relayed == [b"x", b""]
    assert outcome[0] == ("in-doubt" if who == "source" else "rolled-back")


# --- the source dies


async def test_the_source_dies_before_the_commit(setting: Setting) -> None:
    """The destination has undone all; what the dead agent left at the source, nobody knows."""
    outcome = await run(setting, dying(setting.source), UNDONE)
    assert outcome == ("in-doubt", "in-doubt", 4)
    error = setting.driver.error
    assert error is not None and "the agent on src ended" in error.message
    assert "migrate recover" in error.hint and "src" in error.hint


async def test_the_source_dies_after_the_commit(setting: Setting) -> None:
    outcome = await run(setting, dying(setting.source), destination_report())
    assert outcome == ("migrated", None, 0)
    assert any("look for a stopped copy" in note for note in setting.told.notes)


async def test_the_source_dies_and_the_destination_stays_silent(setting: Setting) -> None:
    assert await run(setting, dying(setting.source), never) == ("in-doubt", "in-doubt", 4)


async def test_both_die(setting: Setting) -> None:
    outcome = await run(setting, dying(setting.source), dying(setting.destination))
    assert outcome == ("in-doubt", "in-doubt", 4)


async def test_a_rollback_that_is_not_complete_is_said_in_its_own_words(setting: Setting) -> None:
    error = RollbackIncomplete(detail="unlock: no nftables", pid=5000)
    outcome = await run(setting, error, UNDONE)
    assert outcome == ("in-doubt", "rollback-incomplete", 4)


# --- in doubt


@pytest.mark.parametrize("committed", [True, False])
async def test_a_doubt_is_settled_with_what_the_destination_did(
    setting: Setting, committed: bool
) -> None:
    given: list[bool] = []

    async def resolve(committed: bool) -> Json:
        given.append(committed)
        return source_report("migrated" if committed else "rolled-back")

    setting.source.answers["source.resolve"] = resolve
    outcome = await run(setting, DOUBT, destination_report() if committed else UNDONE)
    assert given == [committed]
    assert outcome == (("migrated", None, 0) if committed else ("rolled-back", "link-lost", 1))
    assert any("settling" in note for note in setting.told.notes)


async def test_a_doubt_that_the_destination_cannot_settle(setting: Setting) -> None:
    assert await run(setting, DOUBT, never) == ("in-doubt", "in-doubt", 4)
    assert "source.resolve" not in setting.source.calls


@pytest.mark.parametrize("committed", [True, False])
async def test_a_doubt_whose_source_dies_before_it_is_settled(
    setting: Setting, committed: bool
) -> None:
    setting.source.answers["source.resolve"] = dying(setting.source)
    outcome = await run(setting, DOUBT, destination_report() if committed else UNDONE)
    assert outcome == ("in-doubt", "in-doubt", 4)


async def test_a_settling_that_is_not_complete_is_said_in_its_own_words(setting: Setting) -> None:
    setting.source.answers["source.resolve"] = RollbackIncomplete(detail="thaw: gone", pid=5000)
    outcome = await run(setting, DOUBT, UNDONE)
    assert outcome == ("in-doubt", "rollback-incomplete", 4)


# --- Ctrl-C in the run


async def interrupted(setting: Setting, accepted: bool, times: int = 1) -> Json:
    """Interrupt a run whose source then ends as it has to."""
    over, answer = held(
        source_report("rolled-back", Cancelled(phase="ship")) if accepted else source_report()
    )
    setting.source.answers["source.run"] = answer
    setting.destination.answers["destination.run"] = UNDONE if accepted else destination_report()

    async def cancel() -> Json:
        over.set()
        return {"accepted": accepted}

    setting.source.answers["source.cancel"] = cancel
    running = setting.start()
    await setting.source.called("source.run")
    for _ in range(times):
        setting.driver.interrupt()
    return await running


async def test_an_interrupt_that_is_accepted(setting: Setting) -> None:
    result = await interrupted(setting, accepted=True)
    assert shown(setting, result) == ("rolled-back", "cancelled", 1)
    assert result["error"]["phase"] == "dump_process"  # as the source says
    assert setting.told.notes == ["undoing"]


async def test_an_interrupt_that_comes_too_late(setting: Setting) -> None:
    result = await interrupted(setting, accepted=False)
    assert shown(setting, result) == ("migrated", None, 0)
    assert setting.told.notes == ["the destination has it already: finishing"]


async def test_a_second_interrupt_changes_nothing(setting: Setting) -> None:
    result = await interrupted(setting, accepted=True, times=3)
    assert shown(setting, result) == ("rolled-back", "cancelled", 1)
    assert setting.source.calls.count("source.cancel") == 1
    assert sum("never left half done" in note for note in setting.told.notes) == 2


async def test_an_interrupt_while_the_source_dies(setting: Setting) -> None:
    setting.source.answers["source.run"] = never
    setting.source.answers["source.cancel"] = dying(setting.source)
    setting.destination.answers["destination.run"] = UNDONE
    running = setting.start()
    await setting.source.called("source.run")
    setting.driver.interrupt()
    assert shown(setting, await running) == ("in-doubt", "in-doubt", 4)


async def test_an_interrupt_when_all_is_over_changes_nothing(setting: Setting) -> None:
    await setting.migrate()
    setting.driver.interrupt()
    assert setting.driver._result["outcome"] == "migrated"


@pytest.mark.parametrize("late", ["source", "destination"])
async def test_an_interrupt_while_one_report_is_out(setting: Setting, late: str) -> None:
    setting.patience(10, 10)
    agent: ScriptedAgent = getattr(setting, late)
    report = source_report() if late == "source" else destination_report()
    over, agent.answers[f"{late}.run"] = held(report)
    setting.source.answers["source.cancel"] = AgentError(detail="it is over")
    running = setting.start()
    await agent.called(f"{late}.run")
    setting.driver.interrupt()
    await setting.source.called("source.cancel")
    over.set()
    assert shown(setting, await running) == ("migrated", None, 0)
