"""What is seen of a migration from the outside: its log, its metrics, its report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.lab import SERVICE, Lab

Json = dict[str, Any]


def logged(process: subprocess.Popen[str]) -> tuple[int, Json, list[Json]]:
    """The exit status, the answer, and the log on stderr, which has nothing else."""
    out, err = process.communicate(timeout=120)
    return process.returncode, json.loads(out), [json.loads(line) for line in err.splitlines()]


def counted(file: Path) -> dict[str, float]:
    families = text_string_to_metric_families(file.read_text())
    return {
        "".join([one.name, *one.labels.values()]): one.value
        for family in families for one in family.samples
    }  # fmt: skip


def test_a_migration_and_one_that_is_undone(lab: Lab, redis: int, tmp_path: Path) -> None:
    file = tmp_path / "streamferry.prom"
    options = ("--log-json", "--metrics-file", str(file))
    fault = ("--fault", "restore_process@destination=error")
    with lab.client("redis_counter.py", SERVICE, 6379, 4, 1, 0.001) as client:
        client.line()
        undone = logged(lab.start_migrate("src", "dst", redis, *options, *fault))
        for host in lab.hosts:
            lab.settle(host)
        moved = logged(lab.start_migrate("src", "dst", redis, *options))
        seen = client.finish()
    assert seen["errors"] == []
    assert (undone[0], moved[0]) == (1, 0), (undone[1]["error"], moved[1]["error"])

    for _, result, lines in (undone, moved):
        assert lines[-1]["event"] == "migration ended" or lines[-1]["level"] == "error"
        phases = [one for one in lines if one["event"] == "phase over"]
        assert {one["host"] for one in phases} == {"src", "dst"}
        assert {one["migration"] for one in phases} == {result["id"]}
    assert any(one.get("phase") == "roll_back" and one["undo"] for one in undone[2])

    found = counted(file)
    assert found["streamferry_migrations_totalmigrated"] == 1
    assert found["streamferry_migrations_totalrolled-back"] == 1
    assert found["streamferry_stall_seconds_count"] == 4 and found["streamferry_in_doubt"] == 0

    last = lab.report("last")
    assert last["id"] == moved[1]["id"] and "redis-server" in last["command"]
    assert {one["role"] for one in last["timeline"]} == {"source", "destination"}
    # A client cannot have waited for less than the blackout, and the estimate is about right.
    assert last["blackout_ms"] <= seen["worst_stall_ms"] + 5
    page = tmp_path / "page.html"
    first = lab.report(undone[1]["id"], "--html", str(page))
    assert first["outcome"] == "rolled-back" and "<svg" in page.read_text()
    assert 0 < first["undone_ms"] and first["failure"]["phase"] == "restore_process"
    freeze = next(one for one in first["timeline"] if one["phase"] == "freeze")
    assert first["undone_ms"] > freeze["start_ms"] + freeze["ms"]


def test_a_drain_is_logged_by_workload_and_migration(lab: Lab, redis: int, tmp_path: Path) -> None:
    file = tmp_path / "streamferry.prom"
    status, answer, lines = logged(lab.start_command(
        "drain", "src", "--to", "dst", "--log-json", "--metrics-file", str(file)
    ))  # fmt: skip
    (drained,) = answer["drains"]
    (item,) = drained["workloads"]
    assert status == 0 and drained["outcome"] == "drained", drained
    states = [one["event"] for one in lines if "workload" in one]
    assert states[-3:] == ["workload moving", "workload checking", "workload moved"]
    assert {one["drain"] for one in lines if "migration" in one} == {drained["id"]}
    ended = next(one for one in lines if one["event"] == "migration ended")
    assert ended["migration"] == item["migration"] and ended["node"] == "src"
    found = counted(file)
    assert found["streamferry_drains_totaldrained"] == 1
    assert found["streamferry_migrations_totalmigrated"] == 1
