"""Thousands of connections move, every one of them, to the last byte."""

from __future__ import annotations

import pytest

from tests.support.lab import HOSTS, SERVICE, Lab
from tests.support.workloads import start_server

COUNT = 3_000
BUSY = (2000, COUNT)  # requests a second, connections that are asked
IDLE = (200, 1)


@pytest.mark.parametrize(("rate", "active"), [BUSY, IDLE], ids=["busy", "idle"])
def test_thousands_of_connections_move_there_and_back(lab: Lab, rate: int, active: int) -> None:
    pid = start_server(lab, program="many_server.py")
    with lab.client("many_client.py", SERVICE, 7000, COUNT, rate, active) as client:
        assert client.line() == "ready"
        for source, destination in (HOSTS, HOSTS[::-1]):
            migration = lab.migrate(source, destination, pid)
            assert migration.status == 0, (migration.result, migration.stderr)
            assert len(migration.result["streams"]) == COUNT
        seen = client.finish()
    assert seen["errors"] == []
    assert seen["requests"] >= 2 * COUNT


def test_thousands_of_connections_stay_where_the_restore_fails(lab: Lab) -> None:
    """What had been put into its place at the destination ends in silence."""
    pid = start_server(lab, program="many_server.py")
    with lab.client("many_client.py", SERVICE, 7000, COUNT, *BUSY) as client:
        assert client.line() == "ready"
        migration = lab.migrate("src", "dst", pid, "--fault", "restored@destination=error")
        assert migration.status == 1, (migration.result, migration.stderr)
        seen = client.finish()
    assert seen["errors"] == []
    for host in HOSTS:
        lab.settle(host)


def test_a_killed_destination_agent_with_thousands_of_connections(lab: Lab) -> None:
    """Its guardian releases them all: the process was already to run there."""
    pid = start_server(lab, program="many_server.py")
    with lab.client("many_client.py", SERVICE, 7000, COUNT, *IDLE) as client:
        assert client.line() == "ready"
        lab.migrate("src", "dst", pid, "--fault", "release@destination=kill")
        lab.recover()
        seen = client.finish()
    assert seen["errors"] == []
    assert lab.alive("dst", pid)
    assert not lab.alive("src", pid)
