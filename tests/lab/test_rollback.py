"""Failures before the commit: the clients feel a stall, and nothing has changed on either host."""

from __future__ import annotations

import signal

import pytest

from tests.support.lab import HOSTS, SERVICE, Lab, Migration, until

PHASES = [
    "lock@source", "freeze@source", "dump_streams@source", "dump_process@source", "ship@source",
    "prepared@source", "lock@destination", "restore_streams@destination", "ship@destination",
    "restore_process@destination", "commit@destination", "take_over@destination",
    "decide@destination",
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
        ("newer", "image-version"),
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


TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None)
print(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True)  # PTRACE_SEIZE
time.sleep(1000)
"""


def test_criu_fails_in_the_dump(lab: Lab, redis: int) -> None:
    """A debugger attaches after the freeze."""
    lab.put("src", "/run/lab-tracer.py", TRACER)
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", "dump_process@source=delay=2")
        until(lambda: reached(lab, redis, "freeze"), 20, "the freeze")
        lab.start("src", f"python3 /run/lab-tracer.py {redis}")
        migration = lab.end_migrate(process)
        lab.run("src", "pkill -KILL -f '[l]ab-tracer'")
        went_on(lab, redis, migration, "criu")
        assert "dump" in migration.result["error"]["message"]
        assert client.finish()["errors"] == []


@pytest.mark.parametrize(("what", "code"), [("process", "pid-taken"), ("thread", "criu")])
def test_an_id_is_taken_after_the_check(lab: Lab, redis: int, what: str, code: str) -> None:
    """A taken PID is seen before the restore; a taken thread ID makes CRIU's restore fail."""
    threads = lab.run("src", f"ls /proc/{redis}/task").split()
    number = redis if what == "process" else int(threads[-1])
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        fault = ("--fault", "lock@source=delay=2")
        process = lab.start_migrate("src", "dst", redis, *fault)
        until(lambda: reached(lab, redis, "lock"), 20, "the lock")
        lab.take("dst", number)
        migration = lab.end_migrate(process)
        assert lab.alive("dst", number)  # it is not ours to end
        lab.run("dst", f"kill {number}")
        until(lambda: not lab.alive("dst", number), 5, "sleep ends")
        went_on(lab, redis, migration, code)
        assert client.finish()["errors"] == []
