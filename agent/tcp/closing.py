"""Half-closed and closing connections: how a restored one gets back into its state.

A connection is always restored as ESTABLISHED. Our own FIN is then queued again with shutdown(2);
what the peer had sent (a FIN, or the acknowledgement of ours) is injected as a segment from it.
Most of that happens at the release, after the window probe, which the kernel only sends in
ESTABLISHED. FIN_WAIT2 is made before the unlock, in repair mode, where the FIN is not sent again.
A socket that had been closed on both sides is one whose peer, at the loopback address, resets it.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import time

from agent.kernel import uapi
from agent.tcp import options, rtt, urgent
from agent.tcp.fins import FIN_ACKED, FIN_RECEIVED, FIN_SENT, FINS
from agent.tcp.segment import ACK, FIN, RST, Inject, segment
from agent.tcp.stream import Stream

_TCP = socket.IPPROTO_TCP
_MASK = 0xFFFFFFFF
_INFO = struct.Struct("=B119xQ")  # of struct tcp_info: tcpi_state, tcpi_bytes_acked (since 4.1)
_TRIES = 100
_PAUSE = 0.0002  # seconds


def settle(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Bring a restored socket to FIN_WAIT2 or CLOSE, where it was there, and bring back what takes
    a segment of the peer: urgent data, and the round-trip time where something is in flight.

    It is in repair mode and locked, and its local address is here. Raises `OSError`.
    """
    if stream.urgent:
        urgent.restore(sock, stream, inject)
    if rtt.early(stream):
        rtt.restore(sock, stream, inject)
    if stream.state == uapi.TCP_CLOSE:
        _end(sock, stream, inject)
    elif FINS.get(stream.state, 0) == FIN_SENT | FIN_ACKED:
        # Selected, the send queue takes the FIN as sent already (tcp_write_xmit()).
        sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
        sock.shutdown(socket.SHUT_WR)
        sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)
        inject([segment(stream, ACK)])


def _end(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Nothing is sent for a reset; the error it leaves is taken where there was none."""
    host, port = sock.getpeername()[:2]
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
    inject([segment(dataclasses.replace(stream, remote=(host, port)), RST)])
    if device := options.device(stream.options):
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, device)
    if not stream.error:
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def close_again(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Bring a released socket from ESTABLISHED back to the state it was dumped in.

    Our FIN goes out (again); the peer's is injected, before ours where that was the order.
    Raises `OSError`.
    """
    fins = FINS.get(stream.state, 0)
    if fins & FIN_ACKED or not fins:
        return
    late = stream.state == uapi.TCP_CLOSING
    if fins & FIN_RECEIVED and not late:
        _peers_fin(sock, stream, inject)
    if fins & FIN_SENT:
        sock.shutdown(socket.SHUT_WR)
    if late:
        _peers_fin(sock, stream, inject)


def _peers_fin(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Inject the peer's FIN until it has been taken.

    The peer is awake, and may have acknowledged more meanwhile: a segment whose own acknowledgement
    is older than that by more than a window is dropped (tcp_ack(), RFC 5961 section 5).
    """
    before, acked = _look(sock)[0], 0
    for _ in range(_TRIES):
        inject([segment(stream, FIN | ACK, acknowledged=(stream.send_seq + acked) & _MASK)])
        state, acked = _look(sock)
        if state != before:
            return
        time.sleep(_PAUSE)  # the kernel may take it later, when it has much to do


def _look(sock: socket.socket) -> tuple[int, int]:
    """The state, and the bytes that were acknowledged since the restore (struct tcp_info)."""
    info = sock.getsockopt(_TCP, socket.TCP_INFO, _INFO.size)
    state, acked = _INFO.unpack(info)
    return state, acked
