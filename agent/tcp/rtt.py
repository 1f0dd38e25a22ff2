"""Give a restored connection the round-trip time that it had.

Without one the kernel waits a second for its first loss probe and three for its retransmission
timer (TCP_TIMEOUT_INIT, TCP_TIMEOUT_FALLBACK), so that what was sent and lost before the move comes
late. It can be told by nothing but an acknowledgement with a timestamp (RFC 7323, section 4.2). So
one byte that the peer has acknowledged is restored before the send queue, and acknowledged again
by a segment injected as if from the peer. Should that byte ever go out, the peer has it already.
"""

from __future__ import annotations

import socket
import struct

from agent.kernel import uapi
from agent.tcp.segment import ACK, Inject, segment
from agent.tcp.stream import Stream
from agent.tcp.window import window

_TCP = socket.IPPROTO_TCP
_MASK = 0xFFFFFFFF
_CLOCKS = struct.Struct("!II")


def early(stream: Stream) -> int:
    """How many bytes (0 or 1) are restored before the send queue, for `restore` to acknowledge.

    Only with something in flight: else the first answer tells the round-trip time.
    """
    in_flight = len(stream.send_queue) > stream.unsent
    return int(in_flight and stream.rtt > 0 and stream.negotiated & uapi.TCPI_OPT_TIMESTAMPS)


def restore(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Acknowledge what `early` has put before the send queue, after the time that it took then.

    The socket is in repair mode, and its local address is here. Raises `OSError`.
    """
    clock = sock.getsockopt(_TCP, uapi.TCP_TIMESTAMP) & _MASK
    sent_at = clock - (stream.rtt if clock & 1 else max(stream.rtt // 1000, 1))
    # The peer's clock is not known. Zero is taken for none (tcp_paws_check()).
    clocks = b"\1\1\x08\x0a" + _CLOCKS.pack(0, sent_at & _MASK or 1)
    # With its window shut nothing that is unsent goes out for it.
    inject([segment(stream, ACK, options=clocks, window=0)])
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_WINDOW, uapi.REPAIR_WINDOW.pack(*window(stream)))
