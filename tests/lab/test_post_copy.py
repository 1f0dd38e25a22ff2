"""Memory that follows when the process runs already: it waits for it, and never goes without."""

from __future__ import annotations

import time

import pytest

from tests.lab.test_memory import ask, counting, moved
from tests.support.lab import HOSTS, SERVICE, Lab, until

_MANY = 300_000  # keys of 1000 bytes
LATE = ("--memory", "post-copy", "--max-rounds", "0")


@pytest.fixture
def data(lab: Lab, redis: int) -> str:
    """A digest of all that Redis has."""
    ask(lab, f"debug populate {_MANY} key 1000")
    return ask(lab, "debug digest")


def test_the_rest_follows(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, *LATE)
    moved(lab, redis, migration, data)
    assert migration.result["bytes"]["memory"] > _MANY * 1000
    assert migration.result["phases_ms"]["post_copy"] > 0


def test_a_round_goes_ahead(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, "--memory", "post-copy")
    moved(lab, redis, migration, data)
    (first,) = migration.result["rounds"]
    assert first["bytes"] > _MANY * 1000 > migration.result["bytes"]["memory"] - first["bytes"]


def test_what_changes_too_fast_follows_by_itself(lab: Lab, redis: int) -> None:
    """The link takes 50 MB/s, and as much is written: nobody has asked for post-copy."""
    keys = 100_000
    with lab.client("redis_writer.py", SERVICE, 6379, keys, 1000, 0) as filling:
        assert filling.result()["errors"] == []
    data = ask(lab, "debug digest")
    writing = ("redis_writer.py", SERVICE, 6379, keys, 1000, 50)
    with lab.limited("400mbit"), counting(lab), lab.client(*writing) as writer:
        assert writer.line() == "ready"
        migration = lab.migrate("src", "dst", redis, "--max-blackout", "1")
        assert writer.finish()["errors"] == []
    moved(lab, redis, migration, data)
    memory = migration.result["memory"]
    assert memory["mode"] == "post-copy" and "MiB while a round goes" in memory["why"]
    assert migration.result["blackout_ms"] < 1000


_CUTS = """
for cut in 1 2 3; do
    until ss -Htn state established src {dst} dst {src} | grep -q .; do sleep 0.02; done
    sleep 0.1
    ss -HKtn state established src {dst} dst {src} | grep -q . && echo cut
done
"""


def test_the_link_is_cut_three_times(lab: Lab, redis: int, data: str) -> None:
    """It stands still where memory is missing, until the link is back; no client gets an error."""
    with counting(lab):
        process = lab.start_migrate("src", "dst", redis, *LATE)
        until(lambda: lab.entered("dst", "running"), 30, "that it runs at dst")
        begin = time.monotonic()
        source, destination = (lab.own_addresses(host)[0] for host in HOSTS)
        cuts = _CUTS.format(src=source, dst=destination)
        assert lab.run("dst", cuts) == "cut\ncut\ncut"
        least = time.monotonic() - begin
        migration = lab.end_migrate(process, 250)
    moved(lab, redis, migration, data)
    assert "it broke off" in migration.stderr
    assert migration.result["phases_ms"]["post_copy"] > least * 1000, "from the resume to the end"


@pytest.mark.parametrize("fault", [
    "serve@source=kill", "post_copy@destination=kill", "running@link=cut",
    "unlock@destination=kill",
])  # fmt: skip
def test_an_agent_is_lost_when_it_runs_already(lab: Lab, redis: int, data: str, fault: str) -> None:
    """New agents of both hosts go on, and the command's outcome is that of any migration."""
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, *LATE, "--fault", fault)
    moved(lab, redis, migration, data)


def test_everybody_is_lost_and_recover_goes_on(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        process = lab.start_migrate(
            "src", "dst", redis, *LATE, "--fault", "post_copy@destination=hang"
        )
        until(lambda: lab.entered("dst", "running"), 30, "that it runs at dst")
        process.kill()
        process.communicate()
        for host in HOSTS:
            lab.run(host, "pkill -KILL -f 'streamferry-[a]gent'")
        status, answer = lab.command("recover")
        (told,) = answer["migrations"]
        assert (status, told["outcome"], told["lost"]) == (0, "migrated", False), told
    assert lab.alive("dst", redis) and not lab.alive("src", redis)
    assert ask(lab, "debug digest") == data
    for host in HOSTS:
        lab.settle(host)


@pytest.mark.parametrize("fault", ["dump_process@source=error", "restored@destination=kill"])
def test_before_the_hand_over_it_goes_on_at_the_source(
    lab: Lab, redis: int, data: str, fault: str
) -> None:
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, *LATE, "--fault", fault)
        assert migration.status == 1, migration.result
    assert lab.alive("src", redis) and not lab.alive("dst", redis)
    assert ask(lab, "debug digest") == data


def test_the_source_restarts_meanwhile(lab: Lab, redis: int, data: str) -> None:
    """The rest of the memory is gone with it: that is said, and the process ended."""
    process = lab.start_migrate(
        "src", "dst", redis, *LATE, "--fault", "post_copy@destination=delay=8"
    )
    until(lambda: lab.entered("dst", "running"), 30, "that it runs at dst")
    with lab.without_power("src"):
        pass
    migration = lab.end_migrate(process, 150)
    assert migration.result["error"], (migration.result, migration.stderr)
    assert (migration.status, migration.result["error"]["code"]) == (1, "copy-lost")
    assert not any(lab.alive(host, redis) for host in HOSTS)
    assert SERVICE in lab.addresses("dst")
    lab.command("recover")
