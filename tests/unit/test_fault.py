"""Faults: one table has every point, and nothing happens that was not asked for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from itertools import product
from pathlib import Path

import pytest

from agent import fault as module
from agent.errors import FaultInjected
from agent.fault import ACTIONS, POINTS, ROLES, BadFault, Faults, Point, damage, parse

ROOT = Path(__file__).resolve().parents[2]
AGENT_ROLES = ("source", "destination")
SOURCES = {
    "source": ("agent/source.py", "agent/source_host.py"),
    "destination": ("agent/destination.py", "agent/destination_host.py"),
    "orchestrator": ("orchestrator/migration/driver.py", "orchestrator/migration/run.py"),
}


def name(point: Point) -> str:
    return f"{point.name}@{point.role}"


@pytest.mark.parametrize("point", POINTS, ids=name)
def test_every_point_takes_its_actions_and_no_other(point: Point) -> None:
    for action in ACTIONS:
        given = action.replace("=S", "=0.5")
        fault = f"{name(point)}={given}"
        if action in point.actions:
            faults = Faults(point.role, [fault])
            assert faults.actions == {point.name: given}
            assert not Faults(next(one for one in ROLES if one != point.role), [fault]).actions
        else:
            with pytest.raises(BadFault):
                parse(fault)


@pytest.mark.parametrize("role", SOURCES)
def test_every_point_is_in_the_code_and_none_else(role: str) -> None:
    code = "".join((ROOT / path).read_text() for path in SOURCES[role])
    used = set(re.findall(r'faults\.(?:at|action)\("(\w+)"\)', code))
    if "faults.at(name)" in code:  # at the beginning of a phase
        used |= {"lock", "freeze", "ship", "commit"}
    assert used == {point.name for point in POINTS if point.role == role}


def test_every_record_of_the_link_is_one_that_is_sent() -> None:
    code = "".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    for point in POINTS:
        if point.role == "link":
            assert f'"kind": "{point.name}"' in code, point.name


def test_names_are_used_once() -> None:
    names = [name(point) for point in POINTS]
    assert len(names) == len(set(names)) and all(point.when for point in POINTS)


@pytest.mark.parametrize(
    "fault",
    [
        "nowhere@source=kill",
        "commit@source=kill",  # of the other role
        "freeze@destination=kill",
        "lock@source=tickle",
        "lock@source=delay=soon",
        "lock@source=delay=-1",
        "lock@source=delay=S",
        "freeze@source=newer",  # no image is sent there
        "lock@source=",
        "lock@source",
        "@source=kill",
        "",
    ],
)
def test_a_fault_that_is_none_is_refused(fault: str) -> None:
    with pytest.raises(BadFault) as raised:
        Faults("source", [fault])
    assert fault in raised.value.message and raised.value.exit_status == 2


async def test_without_faults_nothing_happens() -> None:
    for point in POINTS:
        await Faults(point.role, []).at(point.name)


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


async def test_a_kill_is_of_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(module.os, "kill", lambda *given: killed.append(given))
    await Faults("source", ["lock@source=kill"]).at("lock")
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("lock@source=cut", ["cut"]),
        ("ship@source=corrupt", ["spoil corrupt"]),
        ("ship@source=newer", ["spoil newer"]),
        ("prepared@source=full", ["fill"]),
    ],
)
async def test_whoever_owns_it_is_told(fault: str, told: list[str]) -> None:
    faults = Faults("source", [fault])
    seen: list[str] = []
    faults.cut = lambda: seen.append("cut")
    faults.spoil = lambda action: seen.append(f"spoil {action}")
    faults.fill = lambda: seen.append("fill")
    await faults.at(fault.partition("@")[0])
    assert seen == told


def test_damage_alters_only_what_it_says() -> None:
    header, body = bytes(range(28)), bytes(range(100, 120))
    for action, kept in product(("corrupt", "truncate"), [header]):
        assert damage(action, header, body)[0] == kept
    assert damage("corrupt", header, body)[1] == body[:-1] + bytes([body[-1] ^ 1])
    assert damage("truncate", header, body)[1] == body[:10]
    assert damage("oversize", header, body) == (header[:8] + b"\xff" * 4 + header[12:], body)
    assert damage("newer", header, body) == (header[:2] + b"\x03" + header[3:], body)
    assert damage("kill", header, body) == (header, body)
