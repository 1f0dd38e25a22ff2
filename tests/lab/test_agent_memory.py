"""What the agents need themselves does not grow with the process."""

from __future__ import annotations

import pytest

from tests.lab.test_link import apart
from tests.support.lab import HOSTS, SERVICE, Lab

_LIMIT = 128 << 20
_SMALL, _LARGE = 100_000, 400_000  # keys of 1000 bytes each


def peaks(lab: Lab, redis: int, keys: int, *options: str) -> dict[str, int]:
    """The largest VmHWM of any process of the agents, by host."""
    lab.run("client", f"redis-cli -h {SERVICE} debug populate {keys} key 1000")
    digest = lab.run("client", f"redis-cli -h {SERVICE} debug digest")
    with (
        lab.program("src", "peak_memory.py") as source,
        lab.program("dst", "peak_memory.py") as destination,
    ):
        watching = dict(zip(HOSTS, (source, destination), strict=True))
        assert [one.line() for one in watching.values()] == ["ready", "ready"]
        migration = lab.migrate("src", "dst", redis, *options)
        found = {host: one.finish() for host, one in watching.items()}
    assert migration.status == 0, (migration.result, migration.stderr)
    assert migration.result["bytes"]["memory"] > keys * 1000
    assert lab.run("client", f"redis-cli -h {SERVICE} debug digest") == digest
    for host in HOSTS:
        lab.run(host, "rm -f /run/peak_memory.py")
    assert all(one["seen"] for one in found.values()), "the agents were watched"
    return {host: one["peak"] for host, one in found.items()}


@pytest.mark.parametrize("mode", ["pre-copy", "stop"])
def test_of_much(lab: Lab, redis: int, mode: str) -> None:
    found = peaks(lab, redis, _LARGE, "--memory", mode)
    assert max(found.values()) < _LIMIT, found


def test_relayed_through_this_machine(lab: Lab, redis: int) -> None:
    with apart(lab):
        found = peaks(lab, redis, _SMALL, "--memory", "pre-copy")
    assert max(found.values()) < _LIMIT, found


def test_where_the_destination_is_slow(lab: Lab, redis: int) -> None:
    """It holds the source up: nothing piles up on the way."""
    slow = "pages@destination=delay=0.005"
    found = peaks(lab, redis, _SMALL, "--memory", "pre-copy", "--fault", slow)
    assert max(found.values()) < _LIMIT, found
