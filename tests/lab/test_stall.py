"""What a peer feels: with replay the blackout and little more, without it a retransmission timer.

The figures are for `make bench`; here the bounds only tell the two apart.
"""

from __future__ import annotations

import pytest

from tests.support.lab import SERVICE, Lab
from tests.support.workloads import start_server

RTO_MS = 200  # TCP_RTO_MIN, the least that the peer's timer waits
ROOM_MS = 120  # below it, so that a timer cannot hide in it


@pytest.mark.parametrize("pause", [0, 0.005], ids=["always-asking", "pausing"])
def test_stall_is_the_blackout(lab: Lab, pause: float) -> None:
    pid = start_server(lab)
    with lab.client("request_client.py", SERVICE, 7000, pause) as client:
        client.line()
        migration = lab.migrate("src", "dst", pid)
        result = client.finish()
    assert migration.status == 0, migration.result
    assert result["errors"] == []
    assert result["worst_ms"] < migration.result["blackout_ms"] + ROOM_MS


def test_a_request_during_the_blackout_is_replayed(lab: Lab) -> None:
    pid = start_server(lab)
    with lab.client("late_client.py", SERVICE, 7000) as client:
        client.line()
        migration = lab.migrate("src", "dst", pid)
        result = client.finish()
    assert migration.status == 0, migration.result
    assert result["errors"] == []
    assert result["asked"] > 0 and migration.result["replayed_packets"] > 0
    assert result["worst_ms"] < migration.result["blackout_ms"] + ROOM_MS


def test_without_replay_the_peer_waits_for_its_timer(lab: Lab) -> None:
    pid = start_server(lab)
    with lab.client("late_client.py", SERVICE, 7000) as client:
        client.line()
        migration = lab.migrate("src", "dst", pid, "--test-no-replay")
        result = client.finish()
    assert migration.status == 0, migration.result
    assert result["errors"] == []
    assert result["asked"] > 0 and migration.result["replayed_packets"] == 0
    assert result["worst_ms"] > RTO_MS - 10
