"""Connections in rare states move with a real process and come to their end as they should."""

from __future__ import annotations

import pytest

from tests.support.lab import PROGRAMS, SERVICE, SERVICE6, Lab, until

CLIENT = {SERVICE: "10.77.0.13", SERVICE6: "fd77::13"}


@pytest.mark.parametrize("address", [SERVICE, SERVICE6], ids=["ipv4", "ipv6"])
def test_rare_states(lab: Lab, address: str) -> None:
    """Opening, closed with unread data, urgent data, and TIME_WAIT."""
    lab.add_address("src", address)
    for host in ("src", "dst"):
        lab.put(host, "/tmp/states_server.py", (PROGRAMS / "states_server.py").read_text())
    pid = lab.start("src", f"python3 /tmp/states_server.py {address} 7000")
    until(lambda: lab.run("src", "ss -Hltn sport = :7000"), 10, "the server listens")
    with lab.client("states_client.py", address, 7000, CLIENT[address]) as client:
        word, left, connecting = client.line().split()
        assert word == "ready"
        state = lab.run("src", f"ss -Hatn sport = :{connecting}")
        assert state.startswith("SYN-SENT"), state
        migration = lab.migrate("src", "dst", pid)
        assert migration.status == 0, (migration.result, migration.stderr)
        states = sorted(one["state"] for one in migration.result["streams"])
        assert states == ["ESTABLISHED", "ESTABLISHED", "SYN_SENT"]
        assert lab.run("dst", f"ss -Htn state time-wait dport = :{left}")
        client.tell("go\n")
        result = client.result()
    assert result == {
        "linger": "read me later",
        "urgent": ["before", "!", "behind"],
        "connect": "welcome",
        "served": "opened\n",
    }
