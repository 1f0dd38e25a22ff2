"""Phases: announced at both ends, timed, and the first that fails is to blame."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.phases import Phases

Event = dict[str, Any]


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def phases(told: list[Event]) -> Phases:
    def send(name: str, data: Event) -> None:
        assert name == "phase"
        told.append(data)

    return Phases(send)


def test_a_step_is_announced_and_timed(phases: Phases, told: list[Event]) -> None:
    with phases.step("lock"):
        assert told == [{"name": "lock", "state": "begin", "unwinding": False}]
        assert phases.current == "lock"
    (_, end) = told
    assert end == {"name": "lock", "state": "end", "ms": phases.ms["lock"], "unwinding": False}
    assert end["ms"] >= 0 and phases.to_blame == "lock" and phases.failed_in is None


def test_before_any_step_it_is_the_check(phases: Phases) -> None:
    assert phases.to_blame == phases.current == "check"
    assert phases.ms == {}


def test_times_of_one_name_are_summed(phases: Phases, told: list[Event]) -> None:
    phases.add("restore_streams", 0.25)
    phases.add("restore_streams", 0.5)
    assert phases.ms == {"restore_streams": 750.0}
    assert [one["ms"] for one in told] == [250.0, 500.0], "each is told for itself"


def test_the_first_that_fails_is_to_blame(phases: Phases, told: list[Event]) -> None:
    with pytest.raises(ZeroDivisionError):
        with phases.step("dump_process"):
            with phases.step("ship"):
                raise ZeroDivisionError
    assert phases.failed_in == "ship"
    phases.unwinding = True
    with pytest.raises(KeyError):
        with phases.step("unlock"):
            raise KeyError
    assert phases.to_blame == "ship" and phases.current == "unlock"
    ends = [(one["name"], one["unwinding"]) for one in told if one["state"] == "end"]
    assert ends == [("ship", False), ("dump_process", False), ("unlock", True)]


async def test_a_cancelled_step_has_not_failed(phases: Phases, told: list[Event]) -> None:
    """Another one did, or somebody wanted it so."""

    async def work() -> None:
        with phases.step("ship"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert phases.failed_in is None and phases.to_blame == "ship"
    assert told[-1]["state"] == "end" and "ship" in phases.ms


async def test_steps_may_overlap(phases: Phases) -> None:
    begun = asyncio.Event()

    async def ship() -> None:
        with phases.step("ship"):
            begun.set()
            raise ZeroDivisionError

    with phases.step("dump_process"):
        with pytest.raises(ZeroDivisionError):
            await ship()
    assert phases.failed_in == "ship"
    assert set(phases.ms) == {"ship", "dump_process"}
    assert phases.ms["dump_process"] >= phases.ms["ship"]
