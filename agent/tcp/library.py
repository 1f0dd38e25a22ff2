"""The engine for one socket at a time: remembers what `release` needs, opens what it injects with.

The agents do the same for many sockets at once, over `agent.tcp.dumping` and `restoring`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from agent.kernel import uapi
from agent.kernel.syscalls import connect_unspecified, has_ao
from agent.tcp import closing, dumping, restoring, rtt
from agent.tcp.replay import Replayer
from agent.tcp.segment import Inject
from agent.tcp.stream import Stream, StreamError, format_address

# Seconds for a new address to be delivered to: the kernel makes the local route of an IPv6 address
# in a work item, after the request has been answered.
_PATIENCE = 1.0

_dumped: WeakKeyDictionary[socket.socket, Stream] = WeakKeyDictionary()
_restored: WeakKeyDictionary[socket.socket, Stream] = WeakKeyDictionary()


def dump(sock: socket.socket) -> Stream:
    """Dump a TCP socket; one with a peer is left in repair mode, silent.

    When it fails, the socket is as before. Raises `StreamError` where it cannot be moved as it is,
    `OSError` from the kernel.
    """
    with _plain(sock) as plain:
        _refuse_layers(plain)
        stream = dumping.dump(plain)
    _restored.pop(sock, None)
    _dumped[sock] = stream
    return stream


def _refuse_layers(sock: socket.socket) -> None:
    """What is beside or above TCP stays behind: MPTCP, kernel TLS, and keys. The agents' check
    says the same before anything is frozen (`agent.probe.sockets`). Raises `StreamError`."""
    what = ""
    if sock.proto == uapi.IPPROTO_MPTCP:
        what = "MPTCP"
    elif sock.proto == socket.IPPROTO_TCP:
        with contextlib.suppress(OSError):
            ulp = sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_ULP, 16).rstrip(b"\0")
            what = ulp.decode(errors="replace")
        if not what and has_ao(sock.fileno()):
            what = "TCP-AO"
    if what:
        name = format_address(sock.getsockname()[:2])
        raise StreamError(stream=name, detail=f"it has {what}, which cannot be carried over")


def restore(stream: Stream, sock: socket.socket | None = None) -> socket.socket:
    """A socket in repair mode that holds `stream`, for `release` after the unlock.

    It is made in this thread's network namespace, or is `sock`: a fresh one, or the dumped one
    after `disconnect`. Raises `StreamError`; then `sock` is for the caller to `abandon`.
    """
    if sock is None:
        sock = restoring.restore(stream)
    else:
        with _plain(sock) as plain:
            restoring.restore(stream, plain, ready=False)
            os.set_blocking(sock.fileno(), not stream.nonblocking)
    _dumped.pop(sock, None)
    _restored[sock] = stream
    return sock


def release(sock: socket.socket) -> None:
    """Leave repair mode after the unlock, with the local address here; the peer is woken.

    Also takes back a `dump`. Half-closed and closing connections come to their state again.
    Raises `OSError`; `ValueError` for a socket that neither `dump` nor `restore` gave.
    """
    if (stream := _dumped.pop(sock, None)) is not None:
        if stream.has_peer:
            restoring.release(sock, stream)
        return
    if (stream := _restored.pop(sock, None)) is None:
        raise ValueError("the socket was neither dumped nor restored")
    if stream.state == uapi.TCP_LISTEN:
        return
    with _injector(stream) as inject:
        closing.settle(sock, stream, inject)
        if stream.has_peer:
            restoring.release(sock, stream, inject)


@contextlib.contextmanager
def _plain(sock: socket.socket) -> Iterator[socket.socket]:
    """The same socket without Python's timeout, which would wait for it before each call."""
    blocking = os.get_blocking(sock.fileno())
    with socket.socket(fileno=os.dup(sock.fileno())) as plain:
        os.set_blocking(sock.fileno(), blocking)  # of both; a default timeout has changed it
        yield plain


@contextlib.contextmanager
def _injector(stream: Stream) -> Iterator[Inject]:
    plain = stream.state in (uapi.TCP_ESTABLISHED, uapi.TCP_SYN_SENT) and not stream.urgent
    if plain and not rtt.early(stream):
        yield _nothing
        return
    try:
        replayer = Replayer()
    except PermissionError:
        if not plain:
            raise
        yield len  # without its round-trip time; the peer's own answer acknowledges the same
        return

    def inject(packets: list[bytes]) -> int:
        deadline = time.monotonic() + _PATIENCE
        while (count := replayer.inject(packets)) != len(packets):
            if time.monotonic() < deadline:
                os.sched_yield()
                continue
            detail = f"{stream.local[0]} is not an address of this host"
            raise OSError(errno.EADDRNOTAVAIL, f"{os.strerror(errno.EADDRNOTAVAIL)}: {detail}")
        return count

    try:
        yield inject
    finally:
        replayer.close()


def _nothing(packets: list[bytes]) -> int:
    raise AssertionError(f"{len(packets)} packets for a connection that needs none")


def disconnect(sock: socket.socket) -> None:
    """Let a dumped socket forget its connection without a word, to be restored onto.

    Raises `OSError`; `ValueError` for a socket that is not dumped.
    """
    if sock not in _dumped:
        raise ValueError("the socket was not dumped")
    connect_unspecified(sock.fileno())
    sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # ECONNABORTED, tcp_disconnect()
