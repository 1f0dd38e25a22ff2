"""Faults: every point takes every action, and nothing happens that was not asked for."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import product
from pathlib import Path

import pytest

from agent import fault as module
from agent.errors import FaultInjected
from agent.fault import ACTIONS, DESTINATION_POINTS, SOURCE_POINTS, BadFault, Faults, damage

ROOT = Path(__file__).resolve().parents[2]
POINTS = [("source", point) for point in SOURCE_POINTS] + [
    ("destination", point) for point in DESTINATION_POINTS
]


@pytest.mark.parametrize(("role", "point"), POINTS)
def test_every_point_takes_every_action(role: str, point: str) -> None:
    for action in (*ACTIONS, "delay=0.5"):
        faults = Faults(role, [f"{point}@{role}={action}"])
        assert faults.action(point) == action
        others = [one for where, one in POINTS if where == role and one != point]
        assert not any(faults.action(one) for one in others)


@pytest.mark.parametrize(("role", "point"), POINTS)
def test_every_point_is_in_the_code(role: str, point: str) -> None:
    names = (role, f"{role}_host", "host", "image/shipper")
    code = "".join((ROOT / "agent" / f"{name}.py").read_text() for name in names)
    assert f'_faults.at("{point}")' in code or f'_faults.action("{point}")' in code


@pytest.mark.parametrize(
    "fault",
    [
        "nowhere@source=kill",
        "commit@source=kill",  # of the other role
        "freeze@destination=kill",
        "lock@source=tickle",
        "lock@source=",
        "lock@source",
        "@source=kill",
    ],
)
def test_a_fault_that_is_none_is_refused(fault: str) -> None:
    with pytest.raises(BadFault) as raised:
        for role in ("source", "destination"):
            Faults(role, [fault])
    assert fault in raised.value.message and raised.value.exit_status == 2


def test_a_role_takes_only_its_own() -> None:
    asked = ["lock@source=error", "lock@destination=hang", "ship@destination=full"]
    source, destination = Faults("source", asked), Faults("destination", asked)
    assert (source.action("lock"), destination.action("lock")) == ("error", "hang")
    assert (source.action("ship"), destination.action("ship")) == (None, "full")


async def test_without_faults_nothing_happens() -> None:
    for role, point in POINTS:
        await Faults(role, []).at(point)


async def test_what_the_caller_carries_out_does_nothing_by_itself() -> None:
    for action in ("corrupt", "truncate", "oversize", "newer", "full"):
        await Faults("source", [f"ship@source={action}"]).at("ship")


async def test_an_error_names_its_point() -> None:
    with pytest.raises(FaultInjected, match="freeze"):
        await Faults("source", ["freeze@source=error"]).at("freeze")


async def test_a_hang_lasts_until_it_is_cancelled() -> None:
    task = asyncio.create_task(Faults("source", ["lock@source=hang"]).at("lock"))
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_delay_takes_its_time_and_goes_on() -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await Faults("source", ["lock@source=delay=0.02"]).at("lock")
    assert loop.time() - begin >= 0.015


async def test_a_kill_is_of_the_agent_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(module.os, "kill", lambda *given: killed.append(given))
    await Faults("source", ["lock@source=kill"]).at("lock")
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_damage_alters_only_what_it_says() -> None:
    header, body = bytes(range(28)), bytes(range(100, 120))
    for action, kept in product(("corrupt", "truncate"), [header]):
        assert damage(action, header, body)[0] == kept
    assert damage("corrupt", header, body)[1] == body[:-1] + bytes([body[-1] ^ 1])
    assert damage("truncate", header, body)[1] == body[:10]
    assert damage("oversize", header, body) == (header[:8] + b"\xff" * 4 + header[12:], body)
    assert damage("newer", header, body) == (header[:2] + b"\x03" + header[3:], body)
    assert damage("kill", header, body) == (header, body)
