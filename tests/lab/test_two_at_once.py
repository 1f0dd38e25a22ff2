"""Two migrations at once between the same hosts, and one process asked for twice."""

from __future__ import annotations

import pytest

from tests.support.lab import HOSTS, SERVICE, Lab, until
from tests.support.workloads import start_redis

OTHER = "10.77.0.101"


@pytest.mark.parametrize("other_host", ["src", "dst"], ids=["same-way", "opposite-ways"])
def test_two_at_once(lab: Lab, redis: int, other_host: str) -> None:
    other = start_redis(lab, OTHER, other_host)
    ways = {redis: ("src", "dst"), other: (other_host, "dst" if other_host == "src" else "src")}
    with (
        lab.client("redis_counter.py", SERVICE, 6379, 4, 1, 0.001) as one,
        lab.client("redis_counter.py", OTHER, 6379, 4, 1, 0.001) as two,
    ):
        one.line(), two.line()
        for _ in range(3):  # there, back, and there again
            # Both are held up where they are locked, so that they are so at once.
            fault = ("--fault", "freeze@source=delay=1")
            running = [lab.start_migrate(*ways[pid], pid, *fault) for pid in ways]
            for source, _ in ways.values():
                until(lambda h=source: lab.entered(h, "frozen"), 20, "the freeze")
            for process in running:
                done = lab.end_migrate(process)
                assert done.status == 0, (done.result, done.stderr)
            for pid, (source, destination) in ways.items():
                assert lab.alive(destination, pid) and not lab.alive(source, pid)
            ways = {pid: (there, here) for pid, (here, there) in ways.items()}
        assert one.finish()["errors"] == two.finish()["errors"] == []
    for host in HOSTS:
        lab.settle(host)


def test_the_same_process_asked_for_twice(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        first = lab.start_migrate("src", "dst", redis, "--fault", "lock@source=delay=4")
        until(lambda: lab.entered("src", "ready"), 20, "the first")
        second = lab.migrate("src", "dst", redis)
        assert (second.status, second.result["error"]["code"]) == (3, "already-moving")
        done = lab.end_migrate(first)
        assert done.status == 0, (done.result, done.stderr)
        assert client.finish()["errors"] == []
