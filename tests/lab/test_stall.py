"""What a peer feels: with replay the blackout and little more, without it a retransmission timer.

The figures are for `make bench`; here the bounds only tell the two apart.
"""

from __future__ import annotations

import pytest

from tests.support.lab import SERVICE, Lab
from tests.support.workloads import start_server

ROOM_MS = 120  # below 200 ms (TCP_RTO_MIN), so that a timer cannot hide in it


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
    with lab.client("request_client.py", SERVICE, 7000, 0) as client:
        client.line()
        # The blackout is stretched, so that the timer alone would cost much more.
        migration = lab.migrate("src", "dst", pid, "--fault", "prepared@source=delay=0.45")
        result = client.finish()
    assert migration.status == 0, migration.result
    assert result["errors"] == []
    assert migration.result["replayed_packets"] > 0
    assert result["worst_ms"] < migration.result["blackout_ms"] + ROOM_MS


def test_without_replay_the_peer_waits_for_its_timer(lab: Lab) -> None:
    pid = start_server(lab)
    with lab.client("request_client.py", SERVICE, 7000, 0) as client:
        client.line()
        fault = ("--fault", "prepared@source=delay=0.45")
        migration = lab.migrate("src", "dst", pid, "--test-no-replay", *fault)
        result = client.finish()
    assert migration.status == 0, migration.result
    assert result["errors"] == []
    assert migration.result["replayed_packets"] == 0
    # The timer doubles: it fires about 0.2, 0.4 and 0.8 s after the request.
    assert result["worst_ms"] > migration.result["blackout_ms"] + ROOM_MS
