"""A schedule serves a drain, is killed in the middle of it, and goes on when it is served again."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.test_drain import moved_and_moving
from tests.support.lab import Lab, until
from tests.support.workloads import start_redis

ADDRESSES = {"cache-a": "10.77.0.100", "cache-b": "10.77.0.101", "cache-c": "10.77.0.102"}
DUE = datetime.datetime.fromisoformat("2026-06-01T03:00:00+00:00").timestamp()


def written(directory: Path) -> str:
    path = directory / "nightly.yaml"
    workloads = [
        {"name": name, "select": {"command": "redis-server", "address": address}}
        for name, address in ADDRESSES.items()
    ]
    drain = {"node": "src", "to": ["dst", "spare"], "workloads": workloads}
    schedule = {"cron": "0 3 * * *", "window": "30m"}
    path.write_text(json.dumps({"playbook": 1, "drains": [drain], "schedule": schedule}))
    return str(path)


def test_a_drain_at_its_time_killed_and_served_again(three: Lab, tmp_path: Path) -> None:
    lab = three
    pids = [start_redis(lab, address) for address in ADDRESSES.values()]
    loads = [("redis_counter.py", address, 6379, 2, 1, 0.002) for address in ADDRESSES.values()]
    earlier = set(lab.drains())
    book = written(tmp_path)

    @contextlib.contextmanager
    def serving(clock: float) -> Iterator[Any]:
        own = f"1,{time.time()},{clock}"
        server = lab.start_command("schedule", "serve", book, "--test-clock", own)
        try:
            yield server
        finally:
            server.kill()
            server.communicate()

    def ended(server: Any) -> None:
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=20)
        assert server.returncode == 0, errors
        assert json.loads(output)["interrupted"] == []

    def history() -> list[dict[str, Any]]:
        status, answer = lab.ask("schedule", "history")
        assert status == 0, answer
        return list(answer["runs"])

    with lab.client(*loads[0]) as first, lab.client(*loads[1]) as second:
        assert first.line() == second.line() == "ready"
        with serving(DUE - 3600) as server:  # it is known before it is due
            until(lambda: lab.ask("schedule", "list")[1]["schedules"], 20, "it is served")
            ended(server)
        with serving(DUE - 1) as server:
            until(lambda: set(lab.drains()) - earlier, 20, "the drain is begun")
            until(lambda: moved_and_moving(lab), 20, "one moved and one moving")
            server.kill()
        (run,) = history()
        assert (run["outcome"], run["times"]) == ("interrupted", 1)
        with serving(DUE + 60) as server:
            until(lambda: history()[0]["outcome"] == "done", 25, "the run is done")
            ended(server)
        for client in (first, second):
            seen = client.finish()
            assert seen["errors"] == [] and seen["total"] > 0, seen

    (run,) = history()
    assert (run["due"], run["times"]) == ("2026-06-01T03:00:00+00:00", 2)
    (drain,) = run["drains"]
    assert drain["outcome"] == "drained"
    assert [one.stem for one in set(lab.drains()) - earlier] == [drain["id"]]
    where = [[host for host in lab.hosts if lab.alive(host, pid)] for pid in pids]
    assert all(len(hosts) == 1 and hosts != ["src"] for hosts in where), where
