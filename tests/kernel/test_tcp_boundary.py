"""The boundary between sent and unsent: without it the peer waits for a retransmission timeout.

The bounds only tell the two apart; `make bench` has the figures.
"""

from __future__ import annotations

from tests.bench.boundary import once
from tests.support.netns import Host

RTO_MS = 200  # TCP_RTO_MIN


def test_unsent_data_goes_out_with_the_first_acknowledgement(pair: tuple[Host, Host]) -> None:
    rounds = [once(*pair, boundary=True) for _ in range(10)]
    assert all(one["unsent"] > 0.5 for one in rounds)
    # On a busy machine the source's kernel may have probed just before: a peer answers only one
    # probe in half a second (tcp_invalid_ratelimit).
    assert sorted(one["ms"] for one in rounds)[-2] < RTO_MS / 2


def test_without_the_boundary_it_takes_a_retransmission_timeout(pair: tuple[Host, Host]) -> None:
    assert once(*pair, boundary=False)["ms"] > RTO_MS - 20
