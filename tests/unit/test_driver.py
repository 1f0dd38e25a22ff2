"""The driver up to the run, and a run as it should go, with scripted agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.errors import FaultInjected
from orchestrator.errors import HostUnreachable
from orchestrator.migration.driver import Driver, Request
from orchestrator.migration.result import Json
from tests.support.facts import Case
from tests.support.polling import until
from tests.wire.scripted_agent import destination_report, source_report
from tests.wire.scripted_run import Setting, dying, held, never


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch)


# --- the way it should go


async def test_a_success(setting: Setting) -> None:
    result = await setting.migrate()
    assert (result["outcome"], result["error"], setting.status) == ("migrated", None, 0)
    assert result["id"] == setting.told.checks[0].id
    assert result["blackout_ms"] == pytest.approx(40.0)
    assert all(ms > 0 for ms in result["phases_ms"].values())
    calls = ["probe.host", "probe.process", "source.prepare", "source.run"]
    assert setting.source.calls == calls
    calls = ["probe.host", "probe.destination", "destination.prepare", "destination.run"]
    assert setting.destination.calls == calls
    assert setting.source.closed and setting.destination.closed


async def test_a_check_touches_nothing(setting: Setting) -> None:
    result = await setting.driver.check()
    assert (result["outcome"], result["error"]) == ("ready", None)
    assert not any("prepare" in call for call in setting.source.calls + setting.destination.calls)
    assert setting.source.closed and setting.destination.closed


async def test_what_was_left_out_is_said(setting: Setting) -> None:
    left = [f"/srv/d/{name}" for name in "abcd"]
    setting.source.answers["source.run"] = source_report(sync_left=left)
    result = await setting.migrate()
    assert result["outcome"] == "migrated" and result["sync_left"] == left
    assert setting.told.notes == [
        "warning: not brought, a socket or device: /srv/d/a, /srv/d/b, /srv/d/c and 1 more"
    ]


@pytest.mark.parametrize("first", ["source", "destination"])
async def test_either_report_may_come_first(setting: Setting, first: str) -> None:
    source, setting.source.answers["source.run"] = held(source_report())
    destination, setting.destination.answers["destination.run"] = held(destination_report())
    running = setting.start()
    await setting.source.called("source.run")
    await setting.destination.called("destination.run")
    order = [source, destination] if first == "source" else [destination, source]
    order[0].set()
    await asyncio.sleep(0)
    assert not running.done()
    order[1].set()
    assert (await running)["outcome"] == "migrated"


async def test_events_reach_the_reporter(setting: Setting) -> None:
    async def run(**_: Any) -> Json:
        send = setting.source.server.send_event
        send("phase", {"name": "lock", "state": "begin", "unwinding": False})
        send("progress", {"done": 1, "total": 2})
        send("progress", {"done": "1", "total": None})
        send("of-tomorrow", {})
        return source_report()

    setting.source.answers["source.run"] = run
    assert (await setting.migrate())["outcome"] == "migrated"
    assert [one["name"] for one in setting.told.phases] == ["lock"]
    assert setting.told.bytes == [(1, 2)]


async def test_a_relay_passes_both_ways(setting: Setting) -> None:
    pieces = [b"a", b"", bytes(1 << 20)]

    async def ship(**_: Any) -> Json:
        for piece in pieces:
            setting.source.server.send_event("relay", {"data": piece})
        await until(lambda: setting.source.relayed == [b"answer"])
        return source_report(relayed=True)

    async def restore(**_: Any) -> Json:
        await until(lambda: setting.destination.relayed == pieces)
        setting.destination.server.send_event("relay", {"data": b"answer"})
        return destination_report()

    setting.source.answers["source.run"] = ship
    setting.destination.answers["destination.run"] = restore
    assert (await setting.migrate())["outcome"] == "migrated"
    assert any("through this machine" in note for note in setting.told.notes)


# --- before anything is touched


async def test_the_same_name_twice_is_refused_unopened(setting: Setting) -> None:
    setting.driver = Driver(Request("src", "src", 5000), setting.told)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "same-machine")
    assert (setting.status, setting.source.calls) == (3, [])


async def test_refusals_of_the_hosts_come_before_the_process(setting: Setting) -> None:
    case = Case()
    case.destination["criu"]["path"] = None
    setting.use(case)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "criu-missing")
    assert result["error"]["phase"] == "check" and setting.status == 3
    assert "probe.process" not in setting.source.calls
    assert [one.code for one in setting.driver.refusals] == ["criu-missing"]


async def test_refusals_of_the_process(setting: Setting) -> None:
    case = Case()
    case.found["taken"] = [{"pid": 5000, "owner": 77, "comm": "cron"}]
    setting.use(case)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "pid-taken")
    assert setting.driver.plan is None and result["phases_ms"]["check"] > 0


@pytest.mark.parametrize("which", ["src", "dst"])
async def test_a_host_that_cannot_be_reached(setting: Setting, which: str) -> None:
    setting.unreachable[which] = HostUnreachable(host=which, detail="no route")
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "unreachable")
    assert which in result["error"]["message"] and setting.status == 3
    reached = setting.destination if which == "src" else setting.source
    assert reached.closed


async def test_a_bad_name_is_a_usage_error(setting: Setting) -> None:
    setting.driver = Driver(Request("src", "root@:22", 5000), setting.told)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"], setting.status) == ("refused", "usage", 2)


@pytest.mark.parametrize("call", ["probe.host", "probe.process", "source.prepare"])
async def test_the_source_dies_before_the_run(setting: Setting, call: str) -> None:
    setting.source.answers[call] = dying(setting.source)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "agent-died")
    assert setting.destination.closed and "destination.run" not in setting.destination.calls


@pytest.mark.parametrize("call", ["probe.host", "probe.destination", "destination.prepare"])
async def test_the_destination_dies_before_the_run(setting: Setting, call: str) -> None:
    setting.destination.answers[call] = dying(setting.destination)
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("refused", "agent-died")
    assert setting.source.closed and "source.run" not in setting.source.calls


async def test_an_error_of_a_prepare(setting: Setting) -> None:
    setting.destination.answers["destination.prepare"] = FaultInjected(point="prepare")
    result = await setting.migrate()
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "fault")
    assert setting.status == 1 and "source.run" not in setting.source.calls


# --- Ctrl-C before the run


@pytest.mark.parametrize("slow", ["src", "dst"])
async def test_an_interrupt_while_connecting(setting: Setting, slow: str) -> None:
    setting.slow.add(slow)
    running = setting.start()
    opened = setting.destination if slow == "src" else setting.source
    await until(lambda: opened.greeted)
    setting.driver.interrupt()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "cancelled")
    assert setting.status == 1 and opened.closed


@pytest.mark.parametrize("call", ["probe.host", "probe.process", "source.prepare"])
async def test_an_interrupt_before_the_run(setting: Setting, call: str) -> None:
    setting.source.answers[call] = never
    running = setting.start()
    await setting.source.called(call)
    setting.driver.interrupt()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "cancelled")
    assert "source.run" not in setting.source.calls
    assert setting.source.closed and setting.destination.closed


async def test_an_interrupt_at_once(setting: Setting) -> None:
    running = setting.start()
    await asyncio.sleep(0)
    setting.driver.interrupt()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "cancelled")
    assert setting.source.calls == []


async def test_a_check_can_be_interrupted(setting: Setting) -> None:
    setting.source.answers["probe.process"] = never
    running = asyncio.create_task(setting.driver.check())
    await setting.source.called("probe.process")
    setting.driver.interrupt()
    result = await running
    assert result["error"]["code"] == "cancelled" and setting.driver.plan is None
    assert setting.status == 1
