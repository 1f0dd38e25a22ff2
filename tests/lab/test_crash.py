"""Guardians and orchestrators die, too: one copy goes on, with every connection.

Where only an agent dies is in tests/chaos/test_sweep.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.lab import HOSTS, JOURNALS, SERVICE, Client, Lab, until


def lives(lab: Lab, pid: int, at: str) -> None:
    """One copy runs, at `at`; nothing is left on either host."""
    for host in HOSTS:
        lab.settle(host)
    other = next(host for host in HOSTS if host != at)
    assert lab.alive(at, pid) and not lab.alive(other, pid)
    until(lambda: lab.state(at, pid) in ("S", "R"), 5, "it runs")
    assert SERVICE in lab.addresses(at) and SERVICE not in lab.addresses(other)


def goes_on(lab: Lab, client: Client, pid: int, at: str) -> None:
    """The same, and its clients have not noticed; it can be moved as if nothing had been."""
    lives(lab, pid, at)
    other = next(host for host in HOSTS if host != at)
    again = lab.migrate(at, other, pid)
    assert again.status == 0, (again.result, again.stderr)
    assert client.finish()["errors"] == []


def kill_orchestrator(lab: Lab, redis: int, *options: str) -> None:
    """Begin a migration whose agents hang at a point, and kill the orchestrator there."""
    process = lab.start_migrate("src", "dst", redis, *options)
    until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
    process.kill()
    process.communicate()


@pytest.mark.parametrize("point", ["dump_streams@source", "restore_process@destination"])
def test_without_the_orchestrator_the_agents_finish(lab: Lab, redis: int, point: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        kill_orchestrator(lab, redis, "--fault", f"{point}=delay=2")
        until(lambda: lab.alive("dst", redis) and not lab.alive("src", redis), 20, "it has moved")
        status, answer = lab.command("recover", "src")
        assert status == 0, answer
        lab.command("recover", "dst")
        goes_on(lab, client, redis, "dst")


@pytest.mark.parametrize("point", ["dump_process@source", "ship@source"])
def test_agent_and_guardian_killed_and_then_recovered(lab: Lab, redis: int, point: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", f"{point}=hang")
        until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
        lab.run("src", "pkill -KILL -f 'agent[.]guardian'")
        process.kill()
        process.communicate()
        lab.run("src", "pkill -KILL -f 'streamferry-[a]gent' || true")
        until(lambda: not lab.run("src", "pgrep -f 'streamferry-[a]gent' || true"), 5, "it ends")
        assert lab.run("src", f"ls -I host-id {JOURNALS}")
        assert lab.state("src", redis) in ("T", "t"), "nobody is there to continue it"
        status, told = recovered(lab, "src")
        assert (status, told["outcome"]) == (0, "rolled-back"), told
        assert told["source"]["living"] == [redis]
        goes_on(lab, client, redis, "src")


def recovered(lab: Lab, *what: str) -> tuple[int, dict[str, Any]]:
    """The status of `migrate recover` of one migration, and what it says of that."""
    status, answer = lab.command("recover", *what)
    assert len(answer["migrations"]) == 1, answer
    return status, answer["migrations"][0]


def begun(lab: Lab) -> str:
    """The id of the migration that the source's journal is of."""
    (name,) = lab.run("src", f"ls -I host-id {JOURNALS}").split()
    return name.removesuffix("-source")


def doubt(lab: Lab, redis: int, at_destination: str) -> None:
    """Leave the source in doubt: all agents and guardians die just after the hand-over."""
    fault = ("--fault", f"{at_destination}@destination=hang")
    process = lab.start_migrate("src", "dst", redis, *fault)
    until(lambda: lab.entered("src", "handed-over"), 20, "the hand-over")
    process.kill()
    process.communicate()
    for host in HOSTS:
        lab.run(
            host, "pkill -KILL -f 'agent[.]guardian'; pkill -KILL -f 'streamferry-[a]gent'; true"
        )
    for host in HOSTS:
        until(lambda h=host: not lab.run(h, "pgrep -f 'streamferry-[a]gent' || true"), 5, "ends")


@pytest.mark.parametrize(("point", "outcome", "at"), [
    ("take_over", "rolled-back", "src"), ("decide", "rolled-back", "src"),
    ("unlock", "migrated", "dst"), ("release", "migrated", "dst"), ("thaw", "migrated", "dst"),
])  # fmt: skip
def test_a_doubt_is_ended_by_recover(
    lab: Lab, redis: int, point: str, outcome: str, at: str
) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, point)
        assert lab.state("src", redis) in ("T", "t"), "it waits for the destination's word"
        status, told = recovered(lab, "src")
        assert (status, told["outcome"], told["lost"]) == (0, outcome, False), told
        goes_on(lab, client, redis, at)


@pytest.mark.parametrize(("point", "at"), [("take_over", "src"), ("unlock", "dst")])
def test_in_doubt_the_same_process_cannot_be_moved_again(
    lab: Lab, redis: int, point: str, at: str
) -> None:
    """No advice but to recover: to continue the one copy, or to end the other, would be fatal."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, point)
        migration = begun(lab)
        for verb in ([], ["check"]):
            status, told = lab.command(*verb, "src", "dst", "--pid", str(redis))
            assert (status, told["outcome"], told["error"]["code"]) == (3, "refused", "unfinished")
            assert f"migrate recover {migration}" in told["error"]["hint"]
        assert lab.command("recover")[0] == 0, "all that was begun here"
        goes_on(lab, client, redis, at)


def test_a_frozen_copy_that_somebody_continued_is_told_of(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, "unlock")
        lab.run("src", f"kill -CONT {redis}")
        status, told = lab.command("doctor", "src")
        found = [one for one in told["findings"] if one["kind"] == "process"]
        assert status == 4 and [one["verdict"] for one in found] == ["recover"], told
        assert "runs, and must not" in found[0]["detail"]
        assert lab.command("recover")[0] == 0
        goes_on(lab, client, redis, "dst")


@pytest.mark.parametrize("size", [0, 16384])
def test_a_destination_whose_journal_is_lost_says_nothing(lab: Lab, redis: int, size: int) -> None:
    """Emptied, or of zeros, it does not say that the destination has failed."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, "unlock")
        migration = begun(lab)
        path = f"{JOURNALS}/{migration}-destination"
        lab.run("dst", f"cp -p {path} /root/kept; truncate -s 0 {path}; truncate -s {size} {path}")
        lab.command("doctor", "dst", "--fix")
        status, told = recovered(lab, migration)
        assert (status, told["outcome"]) == (4, "in-doubt"), told
        assert told["destination"]["error"]["code"] == "journal-damaged"
        assert lab.state("src", redis) in ("T", "t"), "it goes on waiting"
        lab.run("dst", f"cp -p /root/kept {path}; rm /root/kept")
        status, told = recovered(lab, migration)
        assert (status, told["outcome"]) == (0, "migrated"), told
        goes_on(lab, client, redis, "dst")


def test_a_destination_that_has_lost_its_journals_is_not_believed(lab: Lab, redis: int) -> None:
    """It would say of a migration it has committed that it knows of none."""
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, "unlock")
        migration = begun(lab)
        lab.run("dst", f"mv {JOURNALS} {JOURNALS}.away")
        for _ in range(2):
            status, told = recovered(lab, migration)
            assert (status, told["outcome"]) == (4, "in-doubt"), told
            assert told["destination"]["error"]["code"] == "another-host"
            assert lab.state("src", redis) in ("T", "t"), "it goes on waiting"
        lab.run("dst", f"rm -rf {JOURNALS}; mv {JOURNALS}.away {JOURNALS}")
        status, told = recovered(lab, migration)
        assert (status, told["outcome"]) == (0, "migrated"), told
        goes_on(lab, client, redis, "dst")


def test_a_destination_that_is_gone_for_good_is_declared_lost(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        doubt(lab, redis, "take_over")
        migration = begun(lab)
        with lab.without_power("dst"):
            assert recovered(lab, migration)[0] == 4
            assert lab.state("src", redis) in ("T", "t")
            status, told = recovered(lab, migration, "--lost", "dst")
            assert (status, told["outcome"]) == (0, "rolled-back"), told
            until(lambda: lab.state("src", redis) in ("S", "R"), 5, "it runs")
        status, told = recovered(lab, "dst")
        assert (status, told["outcome"]) == (0, "rolled-back"), told
        goes_on(lab, client, redis, "src")


@pytest.mark.parametrize("point", ["restored", "commit", "take_over"])
def test_the_copy_is_killed_before_the_commit(lab: Lab, redis: int, point: str) -> None:
    """As by the OOM killer: the source's, frozen, is as good as before."""
    with lab.client("redis_counter.py", SERVICE, 6379, 4, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", f"{point}@destination=delay=2")
        until(lambda: lab.state("dst", redis) == "T", 20, "the restored copy")
        lab.run("dst", f"kill -KILL {redis}")
        migration = lab.end_migrate(process)
        error = migration.result["error"]
        assert (migration.status, error["code"]) == (1, "copy-died")
        assert "was killed by SIGKILL there" in error["message"]
        assert lab.state("src", redis) in ("S", "R")
        assert client.finish()["errors"] == []


def test_the_process_is_killed_while_it_is_frozen(lab: Lab, redis: int) -> None:
    """Nothing can go on, and that is said."""
    process = lab.start_migrate("src", "dst", redis, "--fault", "dump_process@source=delay=3")
    until(lambda: lab.entered("src", "frozen"), 20, "it is frozen")
    lab.run("src", f"kill -KILL {redis}")
    migration = lab.end_migrate(process)
    assert (migration.status, migration.result["outcome"]) == (1, "rolled-back"), migration
    error = migration.result["error"]
    assert (
        error["code"] == "copy-ended" and "was killed by SIGKILL at the source" in error["message"]
    )
    for host in HOSTS:
        assert lab.leftovers(host) == []
