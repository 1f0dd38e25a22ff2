"""The link between the agents: relayed where it must be, and not in need of the orchestrator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.lab import HOSTS, SERVICE, Lab, until


@contextlib.contextmanager
def apart(lab: Lab) -> Iterator[None]:
    """A firewall at dst lets nothing in from src."""
    lab.run(
        "dst",
        "nft 'add table ip lab-apart; add chain ip lab-apart in "
        "{ type filter hook input priority 0; }; "
        "add rule ip lab-apart in ip saddr 10.77.0.11 tcp flags syn drop'",
    )
    try:
        yield
    finally:
        lab.run("dst", "nft delete table ip lab-apart")


def test_relayed_where_the_hosts_cannot_reach_each_other(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        with apart(lab):
            migration = lab.migrate("src", "dst", redis)
        seen = client.finish()
    assert migration.status == 0, (migration.result, migration.stderr)
    assert "through this machine" in migration.stderr
    assert seen["errors"] == []
    assert lab.alive("dst", redis) and not lab.alive("src", redis)


def test_the_agents_finish_without_the_orchestrator(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        process = lab.start_migrate("src", "dst", redis, "--fault", "dump_process@source=delay=1")
        until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
        process.kill()
        process.communicate()
        until(lambda: not lab.alive("src", redis), 20, "the source gives up its copy")
        lab.recover()  # the destination keeps its word until somebody has been told
        assert lab.alive("dst", redis)
        assert client.finish()["errors"] == []


def test_without_orchestrator_and_link_the_source_rolls_back(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 1, 0.001) as client:
        client.line()
        with apart(lab):
            process = lab.start_migrate(
                "src", "dst", redis, "--fault", "dump_process@source=delay=1"
            )
            until(lambda: lab.state("src", redis) in ("T", "t"), 20, "the freeze")
            process.kill()
            process.communicate()
            for host in HOSTS:
                lab.settle(host)
        assert lab.alive("src", redis) and not lab.alive("dst", redis)
        assert client.finish()["errors"] == []
