"""`migrate doctor` on hosts where agent and guardian were killed, and where nothing was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.lab import HOSTS, SERVICE, Lab, until

FROZEN = ["images", "journal", "process", "sockets", "table"]


def doctor(lab: Lab, host: str, *options: str) -> tuple[int, dict[str, Any]]:
    status, answer = lab.command("doctor", host, *options)
    assert answer["error"] is None, answer
    return status, answer


def kinds(answer: dict[str, Any]) -> list[str]:
    return sorted({one["kind"] for one in answer["findings"]})


def clean(lab: Lab) -> None:
    for host in HOSTS:
        lab.settle(host)
        for options in ([], ["--fix"]):
            status, answer = doctor(lab, host, *options)
            assert (status, answer["findings"], answer["under_way"]) == (0, [], []), answer


def kill_all(lab: Lab, *hosts: str) -> None:
    """Agents and guardians at once, so that nobody acts in their place."""
    for host in hosts:
        lab.run(
            host, "pkill -KILL -f 'agent[.]guardian'; pkill -KILL -f 'streamferry-[a]gent'; true"
        )
    for host in hosts:
        until(
            lambda h=host: not lab.run(h, "pgrep -f 'streamferry-[a]gent' || true"), 5, "they end"
        )


def interrupted(lab: Lab, redis: int) -> None:
    """The source has frozen the process and dumped its streams when all is killed there."""
    process = lab.start_migrate("src", "dst", redis, "--fault", "ship@source=hang")
    until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
    written = (
        f"ls /run/streamferry/*/inventory.img && grep -P '^TracerPid:\\t0$' /proc/{redis}/status"
    )
    until(lambda: lab.run("src", f"{written} >/dev/null 2>&1 && echo yes || true"), 20, "the dump")
    lab.run("src", "pkill -KILL -f 'agent[.]guardian'")
    process.kill()
    process.communicate()
    kill_all(lab, "src")
    until(lambda: lab.leftovers("dst") == [], 10, "the destination undoes by itself")


def test_on_a_clean_host_nothing_is_found(lab: Lab, redis: int) -> None:
    clean(lab)
    assert lab.alive("src", redis)


@pytest.mark.parametrize("ending", ["doctor", "recover"])
def test_agent_and_guardian_killed(lab: Lab, redis: int, ending: str) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        interrupted(lab, redis)
        status, answer = doctor(lab, "src")
        assert (status, kinds(answer)) == (1, FROZEN), answer
        assert {one["verdict"] for one in answer["findings"]} == {"clear"}
        assert doctor(lab, "dst")[1]["findings"] == []
        assert lab.state("src", redis) in ("T", "t"), "it only looks"
        if ending == "doctor":
            status, answer = doctor(lab, "src", "--fix")
            assert (status, answer["findings"], answer["errors"]) == (0, [], []), answer
            assert sorted({one["kind"] for one in answer["cleared"]}) == FROZEN
        else:
            assert lab.command("recover", "src")[0] == 0
        clean(lab)
        until(lambda: lab.state("src", redis) in ("S", "R"), 5, "it runs")
        assert client.finish()["errors"] == []


def test_in_doubt_all_stays_for_recover(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", "decide@destination=hang")
        until(lambda: lab.entered("src", "handed-over"), 20, "the hand-over")
        process.kill()
        process.communicate()
        kill_all(lab, *HOSTS)
        for options in ([], ["--fix"]):
            status, answer = doctor(lab, "src", *options)
            assert (status, kinds(answer)) == (4, FROZEN), answer
            assert {one["verdict"] for one in answer["findings"]} == {"recover"}
            assert all("migrate recover" in one["command"] for one in answer["findings"])
        assert lab.state("src", redis) in ("T", "t")
        assert lab.command("recover", "src")[0] == 0
        clean(lab)
        until(lambda: lab.state("src", redis) in ("S", "R"), 5, "it runs")
        assert client.finish()["errors"] == []


def test_while_a_migration_is_under_way_nothing_is_touched(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", "ship@source=delay=4")
        until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
        for host, role in zip(HOSTS, ("source", "destination"), strict=True):
            status, answer = doctor(lab, host, "--fix")
            assert (status, answer["findings"], answer["cleared"]) == (0, [], []), answer
            (one,) = answer["under_way"]
            assert (one["role"], one["pid"]) == (role, redis)
        migration = lab.end_migrate(process)
        assert migration.status == 0, (migration.result, migration.stderr)
        clean(lab)
        assert lab.alive("dst", redis)
        assert client.finish()["errors"] == []


def test_a_user_without_rights_is_refused(lab: Lab) -> None:
    status, answer = lab.command("doctor", "plain@src")
    assert status == 3 and answer["findings"] == []
    assert answer["error"]["code"] in ("may-not-look", "permission-denied")
