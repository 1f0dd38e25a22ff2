"""See with the kernel's own words that a restored socket is what its image says."""

from __future__ import annotations

import socket
import struct

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp.fins import acked_fin
from agent.tcp.rtt import early
from agent.tcp.stream import Stream, StreamError

_TCP = socket.IPPROTO_TCP
_MASK = 0xFFFFFFFF
# tcpi_state, tcpi_options, the byte of both window scales; tcpi_unacked, tcpi_notsent_bytes
_INFO = struct.Struct("=B4xBB17xI116xI")
_KEPT = uapi.TCPI_OPT_TIMESTAMPS | uapi.TCPI_OPT_SACK | uapi.TCPI_OPT_WSCALE
_WINDOW_TRIES = 3
_CLOCK = 600_000_000  # a restore takes less: ten minutes in the finer unit, microseconds


def verify(sock: socket.socket, stream: Stream, windows: bytes, received: int, unsent: int) -> None:
    """Check a connection in repair mode: state, sequence numbers, queues, options, windows, clock.

    The send queue is selected; the receive queue is in the end. `received` bytes are in that one,
    the last `unsent` of the send queue were not sent. Raises `StreamError` with the first
    difference.
    """
    get, fd = sock.getsockopt, sock.fileno()
    info = get(_TCP, uapi.TCP_INFO, _INFO.size)
    state, negotiated, scales, in_flight, unsent_bytes = _INFO.unpack(info)
    wanted = stream.send_scale | stream.receive_scale << 4
    if not stream.negotiated & uapi.TCPI_OPT_WSCALE:
        wanted = 0
    if (state, negotiated & _KEPT, scales) != (
        uapi.TCP_ESTABLISHED, stream.negotiated & _KEPT, wanted
    ):  # fmt: skip
        raise _differs(stream, "options", (state, negotiated, scales), (stream.negotiated, wanted))
    queued = len(stream.send_queue)
    length = ioctl_int(fd, uapi.SIOCOUTQ) if queued or in_flight or unsent_bytes else 0
    not_sent = ioctl_int(fd, uapi.SIOCOUTQNSD) if length else 0
    sent = (get(_TCP, uapi.TCP_QUEUE_SEQ) & _MASK, length, not_sent)
    end = (stream.send_seq - acked_fin(stream.state) + queued) & _MASK
    if sent != (end, queued + early(stream), unsent):
        raise _differs(stream, "send queue", sent, (end, queued + early(stream), unsent))
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_RECV_QUEUE)
    end = (stream.receive_seq + received) & _MASK
    found = (get(_TCP, uapi.TCP_QUEUE_SEQ) & _MASK, ioctl_int(fd, uapi.SIOCINQ))
    if found != (end, received):
        raise _differs(stream, "receive queue", found, (end, received))
    _verify_windows(sock, stream, windows)
    if stream.negotiated & uapi.TCPI_OPT_TIMESTAMPS:
        clock = get(_TCP, uapi.TCP_TIMESTAMP) & _MASK
        if (clock - stream.timestamp) & _MASK > _CLOCK:
            raise _differs(stream, "clock", (clock,), (stream.timestamp,))


def _verify_windows(sock: socket.socket, stream: Stream, windows: bytes) -> None:
    """A timer of what is in flight may send, though the lock swallows it, and then the kernel
    believes that it has told of another window: it is set back."""
    for _ in range(_WINDOW_TRIES):
        window = sock.getsockopt(_TCP, uapi.TCP_REPAIR_WINDOW, len(windows))
        if window == windows:
            return
        sock.setsockopt(_TCP, uapi.TCP_REPAIR_WINDOW, windows)
    unpack = uapi.REPAIR_WINDOW.unpack
    raise _differs(stream, "window", unpack(window), unpack(windows))


def _differs(
    stream: Stream, what: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> StreamError:
    detail = f"its {what} as restored differs from the image: {found}, not {wanted}"
    return StreamError(stream=stream.name, detail=detail)
