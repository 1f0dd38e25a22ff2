"""A connection that is being opened: in SYN_SENT the peer has not answered yet.

It is restored behind the lock by a connect() of its own with the same initial sequence number and
window scale. An answer that came in the blackout is replayed, once it is made to fit; without one
the SYN is repeated by the kernel's timer (1 s, RFC 6298). An answer to the first SYN that comes
only later bears that one's clock: it is refused, and the next SYN opens the connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from agent.kernel import sockdiag, uapi
from agent.tcp.replay import ACK, RST, SYN, parse
from agent.tcp.stream import Stream, StreamError

_TCP = socket.IPPROTO_TCP
_MASK = 0xFFFFFFFF
# What TCP_MAXSEG says before there is an answer: TCP_MSS_DEFAULT (include/net/tcp.h), and for IPv6
# once it connects IPV6_MIN_MTU without headers (tcp_v6_connect())
_MSS_DEFAULTS = {536, 1220}
_MSS_LEAST = 88  # TCP_MIN_MSS: a program cannot ask for less, IP options take it below


def wanted_mss(sock: socket.socket) -> int:
    """The program's TCP_MAXSEG before there is a connection, 0 where it has not asked for one."""
    mss = sock.getsockopt(_TCP, uapi.TCP_MAXSEG)
    return 0 if mss in _MSS_DEFAULTS or mss < _MSS_LEAST else mss


def peer_name(sock: socket.socket) -> tuple[str, int]:
    """getpeername(2), and also of a socket in SYN_SENT, where it is sock_diag(7) that tells.

    That one must be of this network namespace. Raises `OSError` where there is no peer.
    """
    try:
        name = sock.getpeername()
        return name[0], name[1]
    except OSError:
        inode = os.fstat(sock.fileno()).st_ino
        for one in sockdiag.connecting(sock.family):
            if one.inode == inode:
                return one.remote, one.remote_port
        raise


def bind(sock: socket.socket, address: tuple[str | int, ...]) -> None:
    """bind(2); a socket that has forgotten its connection may still be bound there."""
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EINVAL or sock.getsockname()[:2] != address[:2]:
            raise


def loopback(stream: Stream) -> str:
    """This host's own address in the family that the stream's packets have."""
    if stream.family == socket.AF_INET:
        return "127.0.0.1"
    return "::ffff:127.0.0.1" if stream.local[0].startswith("::ffff:") else "::1"


def dump(sock: socket.socket, stream: Stream) -> None:
    """What a SYN_SENT socket in repair mode has beyond its addresses and options."""
    get, set_option = sock.getsockopt, sock.setsockopt
    stream.mss = wanted_mss(sock)  # the clamp before an answer
    stream.timestamp = get(_TCP, uapi.TCP_TIMESTAMP) & _MASK
    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    after_syn = get(_TCP, uapi.TCP_QUEUE_SEQ)
    with contextlib.suppress(BlockingIOError):
        if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            raise StreamError(stream=stream.name, detail="its SYN carries data (TCP Fast Open)")
    stream.send_seq = (after_syn - 1) & _MASK
    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)


def restore(
    sock: socket.socket, stream: Stream, local: tuple[str | int, ...], remote: tuple[str | int, ...]
) -> None:
    """Connect again, behind the lock; `sock` is, and stays, in repair mode. Raises `OSError`.

    Its receive buffer must be large: with it the clamp alone decides the window scale that is
    offered (tcp_select_initial_window()), and the clamp of the first SYN was made from its scale.
    """
    set_option = sock.setsockopt
    if stream.mss:
        set_option(_TCP, uapi.TCP_MAXSEG, stream.mss)
    set_option(_TCP, uapi.TCP_WINDOW_CLAMP, stream.window_clamp)
    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    signed = stream.send_seq - (1 << 32) if stream.send_seq >> 31 else stream.send_seq
    set_option(_TCP, uapi.TCP_QUEUE_SEQ, signed)
    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)
    # In repair mode, beside whatever has the port: an ephemeral one is shared between peers.
    bind(sock, local)
    set_option(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(remote)
    set_option(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
    # The window that the first SYN offered: that large buffer has made it larger.
    windows = list(uapi.REPAIR_WINDOW.unpack(sock.getsockopt(_TCP, uapi.TCP_REPAIR_WINDOW, 20)))
    windows[3] = stream.window[3]
    set_option(_TCP, uapi.TCP_REPAIR_WINDOW, uapi.REPAIR_WINDOW.pack(*windows))


def fit(sock: socket.socket, stream: Stream, packet: bytes) -> bytes:
    """Ready a released socket for the peer's answer to the SYN that was sent before the move.

    Returns the packet to inject: its echo of that SYN's clock, which is not this socket's
    (tcp_rcv_synsent_state_process()), is gone. From then on our clock is the old one, which the
    peer knows. Anything but such an answer is returned as it is. Raises `OSError`.
    """
    segment = parse(packet)
    if segment is None or segment.flags & (SYN | ACK | RST) != SYN | ACK:
        return packet
    if int.from_bytes(segment.tcp[8:12], "big") != (stream.send_seq + 1) & _MASK:
        return packet
    tcp = bytearray(segment.tcp)
    if (at := option_offset(segment.tcp, uapi.TCPOPT_TIMESTAMP)) is None:
        return packet
    tcp[at + 6 : at + 10] = bytes(4)
    signed = stream.clock - (1 << 32) if stream.clock >> 31 else stream.clock
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
    sock.setsockopt(_TCP, uapi.TCP_TIMESTAMP, signed)
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF)
    return b"".join((segment.ip, tcp, segment.payload))


def option_offset(header: bytes, kind: int) -> int | None:
    """Where in a TCP header an option begins, or None where it is not (RFC 9293, section 3.1)."""
    at = 20
    while at + 1 < len(header) and header[at]:
        if header[at] == kind:
            return at
        at += 1 if header[at] == 1 else max(header[at + 1], 2)
    return None
