"""Take a TCP socket apart in repair mode: sequence numbers, queues and their boundary, options.

The socket is left in repair mode, silent. Field by field this follows what the kernel offers in
net/ipv4/tcp.c (do_tcp_getsockopt, tcp_peek_sndq) since Linux 3.5, TCP_REPAIR_WINDOW since 4.8.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp import opening, options, pacing, urgent
from agent.tcp.fins import queued_fin, received_fin
from agent.tcp.stream import MOVABLE, Stream, StreamError

_TCP = socket.IPPROTO_TCP
_SOL = socket.SOL_SOCKET
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT

# tcpi_state, tcpi_options, the byte of both window scales; tcpi_unacked and tcpi_sacked,
# which for a listening socket are the accept queue's length and limit; tcpi_rtt; and
# tcpi_notsent_bytes (4.6, commit cd9b266095f3)
_INFO = struct.Struct("=B4xBB17xII36xI72xI")

_EVENTS = select.POLLIN | select.POLLPRI | select.POLLRDHUP
# Bytes of a segment: as a rule, and with BIG TCP (GSO_MAX_SIZE, include/linux/netdevice.h)
_ACKNOWLEDGED = (1 << 16, 8 << 16)
_URGENT_MAYBE = select.POLLIN | select.POLLPRI


def dump(sock: socket.socket, inode: int = 0) -> Stream:
    """Dump a TCP socket; one with a peer is left in repair mode.

    When it fails, the socket is as before. Raises `StreamError` where it cannot be moved as it is,
    `OSError` from the kernel.
    """
    info = sock.getsockopt(_TCP, uapi.TCP_INFO, _INFO.size)
    memory = sock.getsockopt(_SOL, uapi.SO_MEMINFO, uapi.MEMINFO.size)
    state, negotiated, scales, in_flight, accept_limit, rtt, not_sent = _INFO.unpack(info)
    sizes = uapi.MEMINFO.unpack(memory)
    local = sock.getsockname()
    family = socket.AF_INET if len(local) == 2 else socket.AF_INET6  # sock.family is slow
    stream = Stream(
        inode=inode,
        family=family,
        state=state,
        local=(local[0].partition("%")[0], local[1]),
        remote=("", 0),
        send_buffer=sizes[3],
        receive_buffer=sizes[1],
        buffer_locks=sock.getsockopt(_SOL, uapi.SO_BUF_LOCK),
        nonblocking=int(not os.get_blocking(sock.fileno())),
        options=options.dump(sock, family, state, info, memory),
    )
    if family == socket.AF_INET6:
        stream.scope = local[3]
    if state == uapi.TCP_LISTEN:
        if in_flight:
            raise StreamError(
                stream=stream.name, detail=f"{in_flight} connections wait to be accepted"
            )
        stream.backlog = accept_limit
        stream.mss = opening.wanted_mss(sock)
        return stream
    if state not in MOVABLE:
        name = uapi.STATE_NAMES.get(state, str(state))
        raise StreamError(stream=stream.name, detail=f"it is in state {name}")
    events = _poll(sock)
    if state == uapi.TCP_CLOSE:
        _dump_closed(sock, stream, events)
        return stream
    try:
        remote = opening.peer_name(sock)
    except OSError as error:
        if state != uapi.TCP_SYN_SENT:
            raise
        detail = "it is not of this network namespace"
        raise StreamError(stream=stream.name, detail=detail) from error
    stream.remote = (remote[0].partition("%")[0], remote[1])
    stream.negotiated = negotiated
    stream.send_scale = scales & 15
    stream.receive_scale = scales >> 4
    stream.rtt = rtt
    stream.read_shut = int(bool(events & select.POLLRDHUP) and not received_fin(state))
    try:
        _dump_repair(sock, stream, events, info, queued=bool(in_flight or not_sent))
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
            options.restore_cleared(sock, stream.options)  # known here only: repair mode hides them
        raise
    return stream


def was_connected(sock: socket.socket) -> bool:
    """Whether a socket in CLOSE has had a connection: it then tells its end, and may hold data."""
    return bool(_poll(sock) & select.POLLRDHUP)


def _poll(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock.fileno(), _EVENTS)
    found = poll.poll(0)
    return found[0][1] if found else 0


def _dump_closed(sock: socket.socket, stream: Stream, events: int) -> None:
    """Both sides have closed it, or it was reset; what is to be read can still be read."""
    if not events & select.POLLRDHUP:
        raise StreamError(stream=stream.name, detail="it has not been connected")
    # Which error it is cannot be asked without taking it from the process.
    stream.error = errno.ECONNRESET if events & select.POLLERR else 0
    stream.receive_queue = _peek(sock, ioctl_int(sock.fileno(), uapi.SIOCINQ), stream, "receive")


def _dump_repair(
    sock: socket.socket, stream: Stream, events: int, info: bytes, *, queued: bool
) -> None:
    """`queued`: whether there is a segment in flight, or unsent, and so anything to send."""
    get, set_option, fd = sock.getsockopt, sock.setsockopt, sock.fileno()
    set_option(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
    stream.window_clamp = get(_TCP, uapi.TCP_WINDOW_CLAMP)
    stream.window = uapi.REPAIR_WINDOW.unpack(get(_TCP, uapi.TCP_REPAIR_WINDOW, 20))
    if stream.state == uapi.TCP_SYN_SENT:
        opening.dump(sock, stream)
        return
    stream.mss = get(_TCP, uapi.TCP_MAXSEG)  # in repair mode: mss_clamp, the peer's option
    if stream.negotiated & uapi.TCPI_OPT_TIMESTAMPS:
        clock = get(_TCP, uapi.TCP_TIMESTAMP)
        stream.timestamp = pacing.last_timestamp(clock, info, stream.options)

    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    length = ioctl_int(fd, uapi.SIOCOUTQ) if queued else 0
    stream.send_seq = (get(_TCP, uapi.TCP_QUEUE_SEQ) - length) & 0xFFFFFFFF
    if length:  # else nothing is unsent, either
        fin = queued_fin(stream.state)
        stream.unsent = max(ioctl_int(fd, uapi.SIOCOUTQNSD) - fin, 0)
        stream.send_queue = _peek_sent(sock, length - fin, stream)

    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_RECV_QUEUE)
    end = get(_TCP, uapi.TCP_QUEUE_SEQ) - received_fin(stream.state)
    # Nothing is to be heard of an empty queue, and of one that is shorter than SO_RCVLOWAT.
    length = 0
    if events or options.low_water(stream.options):
        length = ioctl_int(fd, uapi.SIOCINQ)  # without the peer's FIN, unlike the sequence number
    if length or events & _URGENT_MAYBE:
        before, length = urgent.extent(sock)
        if before == length:
            stream.receive_queue = _peek(sock, length, stream, "receive")
        else:
            urgent.dump(sock, stream, before, length, pending=bool(events & select.POLLPRI))
    stream.receive_seq = (end - len(stream.receive_queue)) & 0xFFFFFFFF


def _peek_sent(sock: socket.socket, length: int, stream: Stream) -> bytes:
    """tcp_peek_sndq() starts with the whole first segment, also where a part is acknowledged."""
    if not length:
        return b""
    for before in _ACKNOWLEDGED:
        if len(data := sock.recv(length + before, _PEEK)) < length + before:
            break  # recv() says more than there was room for, too
    if not length <= len(data) < length + before:
        detail = f"its send queue gave {len(data)} of {length} bytes"
        raise StreamError(stream=stream.name, detail=detail)
    return data[-length:]


def _peek(sock: socket.socket, length: int, stream: Stream, queue: str) -> bytes:
    if not length:
        return b""
    data = sock.recv(length, _PEEK)
    if len(data) != length:
        detail = f"its {queue} queue gave {len(data)} of {length} bytes"
        raise StreamError(stream=stream.name, detail=detail)
    return data
