"""Memory that is sent ahead: nothing of it is lost or old, whatever happens while it fills in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.lab import HOSTS, SERVICE, Client, Lab, Migration, until

_KEYS = 100_000  # of 1000 bytes each
_PAGER = "[a]gent.memory.pager"
AHEAD = ("--memory", "pre-copy")


def ask(lab: Lab, *command: str) -> str:
    return lab.run("client", f"redis-cli -h {SERVICE} {' '.join(command)}")


@pytest.fixture
def data(lab: Lab, redis: int) -> str:
    """A digest of all that Redis has."""
    ask(lab, f"debug populate {_KEYS} key 1000")
    return ask(lab, "debug digest")


@contextlib.contextmanager
def counting(lab: Lab) -> Iterator[Client]:
    """Clients that change some pages all the time, and undo it all in the end."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        yield client
        assert client.finish()["errors"] == []
    ask(lab, "del", *(f"counter-{number}" for number in range(8)))


def moved(lab: Lab, redis: int, migration: Migration, data: str) -> None:
    """It runs at dst with all of its memory, and nothing is left."""
    assert migration.status == 0, (migration.result["error"], migration.stderr)
    assert lab.alive("dst", redis) and not lab.alive("src", redis)
    assert ask(lab, "debug digest") == data
    for host in HOSTS:
        lab.settle(host)
        assert not lab.run(host, f"pgrep -f '{_PAGER}' || true")


def test_only_what_changes_goes_in_the_blackout(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, *AHEAD)
    moved(lab, redis, migration, data)
    rounds = [one["bytes"] for one in migration.result["rounds"]]
    assert rounds[0] > _KEYS * 1000 and sum(rounds[1:]) < rounds[0] / 4
    assert migration.result["phases_ms"]["pre_copy"] > 0


def test_by_itself_it_does_so_where_there_is_much(lab: Lab, redis: int, data: str) -> None:
    migration = lab.migrate("src", "dst", redis)
    moved(lab, redis, migration, data)
    assert migration.result["rounds"]


def test_at_once_where_asked_for(lab: Lab, redis: int, data: str) -> None:
    migration = lab.migrate("src", "dst", redis, "--memory", "stop")
    moved(lab, redis, migration, data)
    assert "rounds" not in migration.result


def test_there_and_back(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        for source, destination in (HOSTS, HOSTS[::-1], HOSTS):
            migration = lab.migrate(source, destination, redis, *AHEAD)
            assert migration.status == 0, (migration.result["error"], migration.stderr)
    moved(lab, redis, migration, data)


def test_it_forks_while_it_fills_in(lab: Lab, redis: int, data: str) -> None:
    """A child's memory is as its parent's was; Redis checks what the child has written."""
    process = lab.start_migrate("src", "dst", redis, *AHEAD)
    until(lambda: lab.entered("dst", "committed"), 60, "the commit")
    ask(lab, "bgsave")
    migration = lab.end_migrate(process)
    until(lambda: "rdb_bgsave_in_progress:0" in ask(lab, "info persistence"), 30, "the save")
    assert "rdb_last_bgsave_status:ok" in ask(lab, "info persistence")
    ask(lab, "debug reload nosave")
    moved(lab, redis, migration, data)
    lab.run("dst", "rm -f /tmp/dump.rdb")


def test_the_pager_is_killed_while_it_fills_in(lab: Lab, redis: int, data: str) -> None:
    with counting(lab):
        process = lab.start_migrate("src", "dst", redis, *AHEAD)
        until(lambda: lab.entered("dst", "committed"), 60, "the commit")
        lab.run("dst", f"pkill -KILL -f '{_PAGER}' || true")
        migration = lab.end_migrate(process)
    moved(lab, redis, migration, data)


def test_the_agent_is_killed_while_it_fills_in(lab: Lab, redis: int, data: str) -> None:
    """Its pager goes on."""
    with counting(lab):
        process = lab.start_migrate(
            "src", "dst", redis, *AHEAD, "--fault", "replay@destination=kill"
        )
        migration = lab.end_migrate(process)
    until(lambda: not lab.run("dst", f"pgrep -f '{_PAGER}' || true"), 20, "the pager ends")
    moved(lab, redis, migration, data)


@pytest.mark.parametrize("point", [
    "pre_copy@source", "pages@destination", "dump_process@source", "restore_process@destination",
    "restored@destination",
])  # fmt: skip
@pytest.mark.parametrize("action", ["kill", "error"])
def test_before_the_hand_over_it_goes_on_at_the_source(
    lab: Lab, redis: int, data: str, point: str, action: str
) -> None:
    with counting(lab):
        migration = lab.migrate("src", "dst", redis, *AHEAD, "--fault", f"{point}={action}")
        assert migration.status == 1, migration.result
    assert lab.alive("src", redis) and not lab.alive("dst", redis)
    assert ask(lab, "debug digest") == data
    for host in HOSTS:
        lab.settle(host)
        until(lambda h=host: not lab.run(h, f"pgrep -f '{_PAGER}' || true"), 5, "the pager ends")


def test_no_room_for_it_at_the_destination(lab: Lab, redis: int, data: str) -> None:
    """The destination's tmpfs fills up while memory is sent ahead."""
    lab.run(
        "dst",
        "fallocate -l $(($(df -B1 --output=avail /run | tail -1) - 230000000)) /run/lab-ballast",
    )
    process = lab.start_migrate("src", "dst", redis, *AHEAD, "--fault", "pages@destination=delay=1")
    until(lambda: lab.run("dst", "ls /run/streamferry/*/memory-* 2>/dev/null || true"), 30, "pages")
    lab.run(
        "dst", "fallocate -l $(($(df -B1 --output=avail /run | tail -1) - 8000000)) /run/lab-more"
    )
    migration = lab.end_migrate(process)
    assert (migration.status, migration.result["error"]["code"]) == (1, "images-full")
    assert lab.alive("src", redis) and ask(lab, "debug digest") == data
