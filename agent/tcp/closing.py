"""Half-closed and closing connections: how a restored one gets back into its state.

A connection is always restored as ESTABLISHED. Our own FIN is then queued again with shutdown(2);
what the peer had sent (a FIN, or the acknowledgement of ours) is injected as a segment from it.
Most of that happens at the release, after the window probe, which the kernel only sends in
ESTABLISHED. FIN_WAIT2 is made before the unlock, in repair mode, where the FIN is not sent again.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.kernel import uapi

if TYPE_CHECKING:
    from agent.tcp.stream import Stream

Inject = Callable[[list[bytes]], int]  # agent.tcp.replay.Replayer.replay

FIN_RECEIVED, FIN_SENT, FIN_ACKED = 1, 2, 4
# What has happened in each state (RFC 9293, section 3.3.2). FIN_SENT: it may still be queued.
FINS = {
    uapi.TCP_ESTABLISHED: 0,
    uapi.TCP_CLOSE_WAIT: FIN_RECEIVED,
    uapi.TCP_FIN_WAIT1: FIN_SENT,
    uapi.TCP_FIN_WAIT2: FIN_SENT | FIN_ACKED,
    uapi.TCP_CLOSING: FIN_SENT | FIN_RECEIVED,
    uapi.TCP_LAST_ACK: FIN_SENT | FIN_RECEIVED,
}

_TCP = socket.IPPROTO_TCP
_FIN, _ACK = 0x01, 0x10
_MAPPED = "::ffff:"
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_HEADER = struct.Struct("!HHIIBBHHH")
_MASK = 0xFFFFFFFF


def queued_fin(state: int) -> int:
    """1 where the kernel counts our FIN in the send queue (it is not acknowledged), else 0."""
    return int(FINS[state] & (FIN_SENT | FIN_ACKED) == FIN_SENT)


def received_fin(state: int) -> int:
    """1 where the kernel counts the peer's FIN in what it has received, else 0."""
    return int(bool(FINS[state] & FIN_RECEIVED))


def acked_fin(state: int) -> int:
    """1 where the sequence number of our FIN lies before the send queue, else 0."""
    return int(bool(FINS[state] & FIN_ACKED))


def settle(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Bring a restored socket to FIN_WAIT2, where it was there; else do nothing.

    It is in repair mode and locked, and its local address is here. Raises `OSError`.
    """
    if FINS.get(stream.state, 0) == FIN_SENT | FIN_ACKED:
        # Selected, the send queue takes the FIN as sent already (tcp_write_xmit()).
        sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
        sock.shutdown(socket.SHUT_WR)
        sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)
        inject([segment(stream, _ACK)])


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
        inject([segment(stream, _FIN | _ACK)])
    if fins & FIN_SENT:
        sock.shutdown(socket.SHUT_WR)
    if late:
        inject([segment(stream, _FIN | _ACK)])


def segment(stream: Stream, flags: int) -> bytes:
    """An IP packet as the peer would send it now: no data, the window it had, no checksum.

    Without the timestamp option it is taken all the same, and no clock is disturbed by it.
    """
    local, remote = (
        ipaddress.ip_address(host.removeprefix(_MAPPED))
        for host in (stream.local[0], stream.remote[0])
    )
    window = min(stream.window[1] >> stream.send_scale, 0xFFFF) if stream.window else 0
    tcp = _HEADER.pack(
        stream.remote[1],
        stream.local[1],
        (stream.receive_seq + len(stream.receive_queue)) & _MASK,
        stream.send_seq,
        _HEADER.size // 4 << 4,
        flags,
        window,
        0,
        0,
    )
    if local.version == 4:
        header = _IPV4.pack(
            0x45, 0, _IPV4.size + len(tcp), 0, 0x4000, 64, _TCP, 0, remote.packed, local.packed
        )
    else:
        header = _IPV6.pack(6 << 28, len(tcp), _TCP, 64, remote.packed, local.packed)
    return header + tcp
