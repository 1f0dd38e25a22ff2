"""Hosts that restart, and hosts that stand still for long and come back, in the middle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.chaos.cells import Sweep
from tests.chaos.test_partitions import ALL
from tests.support.lab import HOSTS, SERVICE, Client, Lab, Migration, until

_STILL = 15.0  # seconds: longer than all that the other agent waits for


def reached(lab: Lab, host: str, state: str) -> None:
    until(lambda: lab.entered(host, state), 20, state)


@contextlib.contextmanager
def counting(lab: Lab) -> Iterator[Client]:
    with lab.client("redis_counter.py", SERVICE, 6379, 4, 1, 0.001) as client:
        client.line()
        yield client


def doubt(lab: Lab, pid: int, point: str) -> None:
    """A migration whose orchestrator has died, with the source handed over and the destination
    held up at `point`."""
    process = lab.start_migrate("src", "dst", pid, "--fault", f"{point}@destination=hang")
    reached(lab, "src", "handed-over")
    reached(lab, "dst", {"unlock": "committed"}.get(point, "taking-over"))
    process.kill()
    process.communicate()


def recovered(lab: Lab, *what: str) -> tuple[int, dict[str, object]]:
    status, answer = lab.command("recover", *what)
    (told,) = answer["migrations"]
    return status, told


def nothing_left(lab: Lab) -> None:
    for host in HOSTS:
        lab.settle(host)


def test_both_restart_in_doubt(lab: Lab, redis: int) -> None:
    with counting(lab):
        doubt(lab, redis, "take_over")
        lab.restart(*HOSTS)
    status, told = recovered(lab)
    assert (status, told["outcome"], told["lost"]) == (1, "rolled-back", True), told
    nothing_left(lab)
    assert lab.command("recover")[1]["migrations"] == []


def test_the_destination_restarts_before_it_has_committed(lab: Lab, redis: int) -> None:
    with counting(lab) as client:
        doubt(lab, redis, "take_over")
        lab.restart("dst")
        status, told = recovered(lab)
        assert (status, told["outcome"], told["lost"]) == (0, "rolled-back", False), told
        assert lab.state("src", redis) in ("S", "R") and SERVICE in lab.addresses("src")
        assert client.finish()["errors"] == []
    nothing_left(lab)


def test_the_destination_restarts_after_it_has_committed(lab: Lab, redis: int) -> None:
    """It had the process, and lost it as any host that restarts does: that is said."""
    with counting(lab):
        doubt(lab, redis, "unlock")
        lab.restart("dst")
    status, told = recovered(lab)
    assert (status, told["outcome"], told["lost"]) == (1, "migrated", True), told
    assert not lab.alive("src", redis) and SERVICE not in lab.addresses("src")
    nothing_left(lab)


def test_the_source_restarts_after_the_destination_has_committed(lab: Lab, redis: int) -> None:
    """The command ends before the source is back: what is left there is said, and recovered."""
    with counting(lab) as client:
        process = lab.start_migrate("src", "dst", redis, "--fault", "committed@source=hang")
        reached(lab, "dst", "committed")
        with lab.without_power("src"):
            migration = lab.end_migrate(process, 150)
        error = migration.result["error"]
        assert (migration.status, error["code"]) == (4, "half-ended"), migration.result
        status, told = recovered(lab, migration.result["id"])
        assert (status, told["outcome"], told["unfinished"]) == (0, "migrated", []), told
        assert not lab.alive("src", redis) and SERVICE not in lab.addresses("src")
        assert lab.state("dst", redis) in ("S", "R")
        assert client.finish()["errors"] == []
    nothing_left(lab)


def test_the_source_restarts_before_the_hand_over(lab: Lab, redis: int) -> None:
    """The only copy is gone with its host; the destination keeps no half of it."""
    with counting(lab):
        process = lab.start_migrate("src", "dst", redis, "--fault", "prepared@source=hang")
        reached(lab, "dst", "restoring")
        lab.restart("src")
        migration: Migration = lab.end_migrate(process, 150)
    assert migration.status in (1, 4), migration.result
    lab.command("recover")
    assert not any(lab.alive(host, redis) for host in HOSTS)
    nothing_left(lab)


# Where it stands still; those of the first kind are in every run of the tests.
_STILL_AT = [
    ("src", "handover@source=delay=1", "source", "handed-over"),
    ("dst", "unlock@destination=delay=1", "destination", "committed"),
]
_ALSO_AT = [
    ("dst", "commit@destination=delay=1", "source", "handed-over"),
    ("src", "freeze@source=delay=1", "source", "frozen"),
    ("src", "committed@source=delay=1", "source", "committed"),
    ("dst", "restored@destination=delay=1", "destination", "restoring"),
]


@pytest.mark.parametrize(("host", "fault", "role", "state"), _STILL_AT + (_ALSO_AT if ALL else []))
def test_a_host_stands_still_and_comes_back(
    lab: Lab, redis: int, host: str, fault: str, role: str, state: str
) -> None:
    """It wakes when the other has gone by the silence, and must not act on what it believed."""
    sweep = Sweep(lab)
    sweep.pid = redis

    def disturb(source: str, destination: str, _: object) -> None:
        reached(lab, source if role == "source" else destination, state)
        with lab.standing_still(host):
            time.sleep(_STILL)

    cell = sweep.cell(fault, disturb)
    assert cell.ok, cell.to_json()
