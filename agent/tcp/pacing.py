"""How far the timestamps of a paced connection run ahead of its clock.

With pacing a segment bears the time at which it may leave. The time for the next one is set when
one has left: its length at the pacing rate later. An acknowledgement does not wait for that time,
but bears it (tcp_wstamp_ns in __tcp_transmit_skb() and tcp_update_skb_after_send()). A moved
connection begins at its clock again; what it sends with less than the peer has seen is dropped
there (RFC 7323, section 5.3).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from agent.kernel import uapi
from agent.tcp.option_table import OptionValue

_LAST_SENT = struct.Struct("=44xI")  # tcpi_last_data_sent, milliseconds
_RATES = struct.Struct("=104xQQ")  # tcpi_pacing_rate, tcpi_max_pacing_rate, bytes per second
_UNLIMITED = (1 << 64) - 1
_SEGMENT = 65_536  # bytes that may leave at once: the default of gso_max_size
_TICK = 10  # milliseconds: what a jiffy may take away from tcpi_last_data_sent
_UNPACED = (b"cubic", b"reno")


def last_timestamp(clock: int, info: bytes, options: Sequence[tuple[int, int, OptionValue]]) -> int:
    """What the last TSval can have been at most: `clock` is TCP_TIMESTAMP, `info` struct tcp_info.

    The lowest bit, which says whether the clock counts microseconds, stays.
    """
    rate, limit = _RATES.unpack_from(info)
    if rate:
        left = 1000 * _SEGMENT // rate + _TICK - _LAST_SENT.unpack_from(info)[0]
        if left > 0 and (limit != _UNLIMITED or _paces(options)):
            clock += 1000 * left if clock & 1 else left + (left & 1)
    return clock & 0xFFFFFFFF


def _paces(options: Sequence[tuple[int, int, OptionValue]]) -> bool:
    """Whether its congestion control may pace: only of those known not to it is sure."""
    for level, number, value in options:
        if (level, number) == (socket.IPPROTO_TCP, uapi.TCP_CONGESTION):
            return isinstance(value, bytes) and value.rstrip(b"\0") not in _UNPACED
    return False
