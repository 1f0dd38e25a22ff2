"""Failures before the commit: the clients feel a stall, and nothing has changed on either host."""

from __future__ import annotations

import signal

import pytest

from tests.support.lab import HOSTS, SERVICE, Lab, Migration, until

PHASES = [
    "lock@source", "freeze@source", "dump_streams@source", "dump_process@source", "ship@source",
    "prepared@source", "lock@destination", "restore_streams@destination", "ship@destination",
    "restore_process@destination", "commit@destination", "take_over@destination",
    "unlock@destination",
]  # fmt: skip
BEFORE_HANDOVER = PHASES[:10]


def went_on(lab: Lab, pid: int, migration: Migration, code: str) -> None:
    """The process is where it was, alone, and nothing is left."""
    assert migration.status == 1, (migration.result, migration.stderr)
    assert migration.result["outcome"] == "rolled-back"
    error = migration.result["error"]
    assert error["code"] == code, error
    assert error["message"] and error["hint"] and error["phase"]
    for host in HOSTS:
        lab.settle(host)
    assert lab.alive("src", pid) and not lab.alive("dst", pid)
    assert lab.state("src", pid) in ("S", "R")
    assert SERVICE in lab.addresses("src") and SERVICE not in lab.addresses("dst")


@pytest.mark.parametrize("point", PHASES)
def test_an_error_at_any_step(lab: Lab, redis: int, point: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        went_on(lab, redis, lab.migrate("src", "dst", redis, "--fault", f"{point}=error"), "fault")
        again = lab.migrate("src", "dst", redis)
        assert again.status == 0, again.result
        assert client.finish()["errors"] == []


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("truncate", "image-truncated"),
        ("corrupt", "image"),
        ("oversize", "image-too-large"),
        ("newer", "image-too-new"),
    ],
)
def test_a_spoilt_image(lab: Lab, redis: int, action: str, code: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        fault = ("--fault", f"ship@source={action}")
        went_on(lab, redis, lab.migrate("src", "dst", redis, *fault), code)
        assert client.finish()["errors"] == []


def test_the_destination_has_no_room(lab: Lab, redis: int) -> None:
    """A tmpfs that the check finds large enough, and that fills while the images arrive."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        fault = ("--fault", "ship@destination=full")
        went_on(lab, redis, lab.migrate("src", "dst", redis, *fault), "images-full")
        assert client.finish()["errors"] == []


def reached(lab: Lab, pid: int, point: str) -> bool:
    """Whether a migration is about at the phase that it is to hang in."""
    if point.startswith("lock"):
        return all(lab.run(host, "ls -A /run/streamferry 2>/dev/null", False) for host in HOSTS)
    return lab.state("src", pid) in ("T", "t")


@pytest.mark.parametrize("point", BEFORE_HANDOVER)
def test_interrupt_in_every_phase(lab: Lab, redis: int, point: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", f"{point}=hang")
        until(lambda: reached(lab, redis, point), 20, point)
        process.send_signal(signal.SIGINT)
        went_on(lab, redis, lab.end_migrate(process), "cancelled")
        assert client.finish()["errors"] == []


def test_a_blackout_that_would_be_too_long(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        options = ("--max-blackout", "0.5", "--fault", "restore_process@destination=hang")
        went_on(lab, redis, lab.migrate("src", "dst", redis, *options), "blackout-exceeded")
        seen = client.finish()
        assert seen["errors"] == []


def test_criu_fails_in_the_restore(lab: Lab, redis: int) -> None:
    """The PID is taken between the check and the restore."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate(
            "src", "dst", redis, "--fault", "restore_process@destination=delay=2"
        )
        until(lambda: lab.run("dst", "nft list tables | grep streamferry", False), 20, "the lock")
        taken = lab.start("dst", "sleep 1000")
        lab.run("dst", f"kill {taken}")
        lab.run("dst", f"start-high {redis - 1} sleep 1000")
        went_on_result = lab.end_migrate(process)
        assert went_on_result.status == 1
        assert went_on_result.result["error"]["code"] == "criu"
        lab.run("dst", "pkill -x sleep")
        for host in HOSTS:
            lab.settle(host)
        assert client.finish()["errors"] == []
