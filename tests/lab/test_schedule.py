"""A schedule serves a drain, is killed in the middle of it, and goes on when it is served again."""

from __future__ import annotations

import datetime
import json
import signal
import time
from pathlib import Path
from typing import Any

from tests.lab.test_drain import moved_and_moving
from tests.support.lab import Lab, until
from tests.support.workloads import start_redis

ADDRESSES = {"cache-a": "10.77.0.100", "cache-b": "10.77.0.101", "cache-c": "10.77.0.102"}
NIGHT = datetime.datetime.fromisoformat("2026-06-01T02:59:59+00:00").timestamp()


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
    book, clock = written(tmp_path), f"1,{time.time()},{NIGHT}"

    def serve() -> Any:
        return lab.start_command("schedule", "serve", book, "--test-clock", clock)

    def history() -> list[dict[str, Any]]:
        status, answer = lab.command("schedule", "history")
        assert status == 0, answer
        return list(answer["runs"])

    with lab.client(*loads[0]) as first, lab.client(*loads[1]) as second:
        assert first.line() == second.line() == "ready"
        server = serve()
        until(lambda: set(lab.drains()) - earlier, 20, "the drain is begun")
        until(lambda: moved_and_moving(lab), 20, "one moved and one moving")
        server.send_signal(signal.SIGKILL)
        server.communicate()
        (run,) = history()
        assert (run["outcome"], run["times"]) == ("interrupted", 1)
        server = serve()
        until(lambda: history()[0]["outcome"] == "done", 25, "the run is done")
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=20)
        assert server.returncode == 0, errors
        assert json.loads(output)["interrupted"] == []
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
