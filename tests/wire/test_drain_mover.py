"""A migration of a drain, by the real driver between scripted agents; and a drain's agents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Cancelled
from agent.plan import Plan
from orchestrator.draining import agents as module
from orchestrator.draining.agents import SshAgents
from orchestrator.draining.mover import Mover
from orchestrator.draining.wellness import await_well
from orchestrator.errors import AgentDied
from orchestrator.migration.driver import Request
from orchestrator.playbook.model import Health, Limits
from orchestrator.records import Records
from tests.wire.scripted_agent import Json, ScriptedAgent, destination_report, source_report
from tests.wire.scripted_run import Setting


class Told:
    """A mover, and what it has told."""

    def __init__(self, directory: Path, **limits: str) -> None:
        self.plans: list[Plan] = []
        self.said: list[tuple[str, int, int]] = []
        self.notes: list[str] = []
        self.records = Records(directory)
        self.mover = Mover(
            Request("src", "dst", 5000), self.records, Limits.model_validate(limits),
            self.plans.append, lambda *one: self.said.append(one), self.notes.append,
        )  # fmt: skip


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch)


async def test_a_success(setting: Setting, tmp_path: Path) -> None:
    async def run(**_: Any) -> Json:
        send = setting.source.server.send_event
        send("phase", {"name": "ship", "state": "begin", "unwinding": False})
        send("progress", {"done": 1, "total": 2})
        return source_report()

    setting.source.answers["source.run"] = run
    told = Told(tmp_path, per_gib="1m", no_progress="1m")
    move = await told.mover.go()
    assert (move.result["outcome"], move.error) == ("migrated", None)
    assert [one.id for one in told.plans] == [move.result["id"]]
    assert told.said == [("ship", 0, 0), ("ship", 1, 2)]
    record = told.records.get(move.result["id"])
    assert record is not None and record["result"] is not None


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"per_gib": "200ms"}, "limits.per_gib allows 200ms"),
     ({"no_progress": "200ms"}, "no progress for 200ms, in the phase ship")],
    ids=["per-gib", "no-progress"],
)  # fmt: skip
async def test_one_that_takes_too_long_is_undone(
    setting: Setting, tmp_path: Path, limits: dict[str, str], said: str
) -> None:
    cancelled = asyncio.Event()

    async def run(**_: Any) -> Json:
        event = {"name": "ship", "state": "begin", "unwinding": False}
        setting.source.server.send_event("phase", event)
        await cancelled.wait()
        return source_report("rolled-back", Cancelled(phase="ship"))

    async def taken(**_: Any) -> Json:
        await cancelled.wait()
        return destination_report("rolled-back")

    async def cancel(**_: Any) -> Json:
        cancelled.set()
        return {"accepted": True}

    setting.source.answers |= {"source.run": run, "source.cancel": cancel}
    setting.destination.answers["destination.run"] = taken
    async with asyncio.timeout(10):
        move = await Told(tmp_path, **limits).mover.go()
    assert move.result["outcome"] == "rolled-back"
    assert move.error is not None and move.error.code == "too-slow"
    assert said in move.error.message


async def test_each_gib_has_its_time_and_each_sign_of_life_begins_anew(
    setting: Setting, tmp_path: Path
) -> None:
    mover = Told(tmp_path, per_gib="1m", no_progress="10s").mover
    assert mover._too_slow(59.9, 9.9) == ""
    assert "allows 1m for" in mover._too_slow(60.1, 0)  # less than one counts as one
    mover._memory = (2 << 30) + 1
    assert mover._too_slow(179.9, 0) == "" and "allows 3m for" in mover._too_slow(180.1, 0)
    assert "no progress for 10s" in mover._too_slow(20, 10.1)
    before = mover._heard
    mover.progress(1, 2)
    assert mover._heard > before
    assert Told(tmp_path).mover._too_slow(1e9, 1e9) == ""


# --- the agents that only look


class Reached:
    """Agents of a host, each new one when the one before has gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> None:
        self.agents: list[ScriptedAgent] = []
        self._answers = answers
        monkeypatch.setattr(module, "open_agent", self._open)

    async def _open(self, target: Any, config: list[str]) -> Any:
        answer = self._answers[min(len(self.agents), len(self._answers) - 1)]
        agent = ScriptedAgent(str(target), {"probe.health": answer})
        self.agents.append(agent)
        return agent.channel


WELL, ILL = {"healthy": True, "detail": "fine"}, {"healthy": False, "detail": "it is ill"}


async def test_a_host_is_reached_once_and_again_where_its_agent_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached = Reached(monkeypatch, [WELL])
    agents = SshAgents("none")

    async def ask() -> Any:
        return await agents.ask("dst", lambda agent: agent.health("command", "x", 1))

    assert await asyncio.gather(*(ask() for _ in range(5))) == [WELL] * 5
    assert len(reached.agents) == 1
    reached.agents[0].die()
    assert await ask() == WELL and len(reached.agents) == 2

    async def dies(**_: Any) -> None:
        reached.agents[-1].die()

    reached.agents[-1].answers["probe.health"] = dies
    assert await ask() == WELL and len(reached.agents) == 3
    await agents.close()
    assert reached.agents[-1].closed


async def test_one_who_dies_each_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(**_: Any) -> None:
        reached.agents[-1].die()

    reached = Reached(monkeypatch, [dies])
    agents = SshAgents("none")
    with pytest.raises(AgentDied):
        await agents.ask("dst", lambda agent: agent.health("command", "x", 1))
    assert len(reached.agents) == 2
    await agents.close()


async def test_it_is_asked_until_it_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ILL, ILL, WELL]

    async def ask(kind: str, what: str, seconds: float) -> Json:
        assert (kind, what) == ("tcp", "10.0.0.5 80") and 0 < seconds <= 5
        return answers.pop(0)

    Reached(monkeypatch, [ask])
    agents = SshAgents("none")
    health = Health.model_validate({"tcp": {"port": 80}, "within": "30s"})
    assert await await_well(agents, "dst", health, "10.0.0.5") is None and answers == []
    answers += [ILL] * 100
    health = Health.model_validate({"tcp": {"port": 80}, "within": "300ms"})
    unwell = await await_well(agents, "dst", health, "10.0.0.5")
    assert unwell is not None and unwell.message.endswith("on dst within 300ms: it is ill")
    await agents.close()
