"""Signals to the command at any moment: it is undone or done, and never left half done."""

from __future__ import annotations

import json
import random
import signal
import time

from tests.support.lab import HOSTS, SERVICE, Lab, until

SIGNALS = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
LONGEST = 1.3  # seconds; a whole migration takes about one


def test_signals_at_any_moment(lab: Lab, redis: int) -> None:
    chance = random.Random(5)
    where = "src"
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        for number in range(15):
            other = "dst" if where == "src" else "src"
            process = lab.start_migrate(where, other, redis)
            time.sleep(chance.uniform(0.2, LONGEST))  # the moment itself is what is tried
            number_sent = SIGNALS[number % len(SIGNALS)]
            process.send_signal(number_sent)
            output, errors = process.communicate(timeout=60)
            assert "Traceback" not in errors
            until(lambda: sum(lab.alive(host, redis) for host in HOSTS) == 1, 20, "one copy")
            if number_sent == signal.SIGKILL:
                lab.recover()
            for host in HOSTS:
                lab.settle(host)
            was, where = where, next(host for host in HOSTS if lab.alive(host, redis))
            if number_sent != signal.SIGKILL:
                outcome = json.loads(output)["outcome"]
                assert outcome == ("rolled-back" if where == was else "migrated")
                assert process.returncode == (1 if where == was else 0)
        assert client.finish()["errors"] == []


def test_new_connections_all_the_time(lab: Lab, redis: int) -> None:
    """Each short connection is served, by one host or the other."""
    with lab.client("short_connections.py", SERVICE, 6379, 8) as client:
        assert client.line() == "ready"
        for source, destination in (("src", "dst"), ("dst", "src")) * 2:
            migration = lab.migrate(source, destination, redis)
            assert migration.status == 0, migration.result
        seen = client.finish()
    assert seen["errors"] == []
    assert seen["connections"] > 100
