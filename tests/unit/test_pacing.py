"""The last timestamp that a paced connection may have sent."""

from __future__ import annotations

import struct

from agent.kernel import uapi
from agent.tcp.pacing import last_timestamp

_UNLIMITED = (1 << 64) - 1
BBR = [(6, uapi.TCP_CONGESTION, b"bbr".ljust(16, b"\0"))]
RENO = [(6, uapi.TCP_CONGESTION, b"reno".ljust(16, b"\0"))]


def info(rate: int, last_sent: int = 0, limit: int = _UNLIMITED) -> bytes:
    return struct.pack("=44xI56xQQ", last_sent, rate, limit)


def test_only_a_paced_connection_runs_ahead() -> None:
    slow = info(rate=655_360)  # 100 ms for one segment, and a tick
    assert last_timestamp(1000, slow, BBR) == 1110
    assert last_timestamp(1000, slow, RENO) == 1000
    assert last_timestamp(1000, slow, []) == 1000, "cubic is not said"
    assert last_timestamp(1000, info(655_360, limit=655_360), RENO) == 1110


def test_only_so_long_after_its_last_segment() -> None:
    assert last_timestamp(1000, info(655_360, last_sent=60), BBR) == 1050
    assert last_timestamp(1000, info(655_360, last_sent=200), BBR) == 1000
    assert last_timestamp(1000, info(0), BBR) == 1000


def test_the_unit_is_kept() -> None:
    """The lowest bit says that the clock counts microseconds."""
    assert last_timestamp(1001, info(655_360), BBR) == 1001 + 110_000
    assert last_timestamp(1000, info(655_360, last_sent=61), BBR) == 1050
    assert last_timestamp(0xFFFFFFFE, info(655_360), BBR) == 108


def test_it_counts_around() -> None:
    assert last_timestamp(-2, info(655_360), BBR) == 108, "getsockopt() gives it with a sign"
