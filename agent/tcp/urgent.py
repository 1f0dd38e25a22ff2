"""Urgent data that the process has not read (RFC 6093): one byte at a mark in the receive queue.

The kernel shows the queue only up to the mark. With SO_OOBINLINE set for a moment it tells the
whole length, and SO_PEEK_OFF (for TCP since 6.9) looks behind the mark. The byte is restored by
injecting it as the peer's segment with the urgent pointer.
"""

from __future__ import annotations

import socket

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp.queues import write
from agent.tcp.segment import ACK, URG, Inject, segment
from agent.tcp.stream import Stream, StreamError
from agent.tcp.window import window

_SOL = socket.SOL_SOCKET
_TCP = socket.IPPROTO_TCP
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


def extent(sock: socket.socket) -> tuple[int, int]:
    """Bytes in the receive queue before the mark, and in all; equal where there is no mark."""
    fd = sock.fileno()
    inline = sock.getsockopt(_SOL, uapi.SO_OOBINLINE)
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, 0)
    before = ioctl_int(fd, uapi.SIOCINQ)
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, 1)
    whole = ioctl_int(fd, uapi.SIOCINQ)
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, inline)
    return before, whole


def dump(sock: socket.socket, stream: Stream, before: int, whole: int, *, pending: bool) -> None:
    """Read the queue of a socket in repair mode across the mark.

    An urgent byte that is not `pending`, as the process has read it, is left out with its mark.
    Raises `StreamError`.
    """
    inline = sock.getsockopt(_SOL, uapi.SO_OOBINLINE)
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, 1)
    try:
        head = sock.recv(before, _PEEK) if before else b""
        tail = _peek_from(sock, before, whole - before)
    except OSError as error:
        detail = f"the data behind its urgent byte cannot be read on this kernel: {error}"
        raise StreamError(stream=stream.name, detail=detail) from error
    finally:
        sock.setsockopt(_SOL, uapi.SO_OOBINLINE, inline)
    if len(head) + len(tail) != whole:
        detail = f"its receive queue gave {len(head)} and {len(tail)} of {whole} bytes"
        raise StreamError(stream=stream.name, detail=detail)
    if pending:
        stream.urgent = before + 1
    elif not inline:
        tail = tail[1:]
    stream.receive_queue = head + tail


def _peek_from(sock: socket.socket, offset: int, length: int) -> bytes:
    if not offset:
        return sock.recv(length, _PEEK)
    ours = sock.getsockopt(_SOL, uapi.SO_PEEK_OFF)
    sock.setsockopt(_SOL, uapi.SO_PEEK_OFF, offset)
    try:
        return sock.recv(length, _PEEK)
    finally:
        sock.setsockopt(_SOL, uapi.SO_PEEK_OFF, ours)


def restore(sock: socket.socket, stream: Stream, inject: Inject) -> None:
    """Bring the urgent byte, and what is behind it, into the queue that was restored up to it.

    The socket is in repair mode and locked, and its local address is here. Raises `OSError`.
    """
    offset = stream.urgent - 1
    byte = stream.receive_queue[offset : offset + 1]
    inject([segment(stream, URG | ACK, byte, at=offset)])
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_RECV_QUEUE)
    write(sock, memoryview(stream.receive_queue)[stream.urgent :])
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_WINDOW, uapi.REPAIR_WINDOW.pack(*window(stream)))
