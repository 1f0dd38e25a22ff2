"""Urgent data: the byte, its mark and what is around it come through."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct

import pytest

from agent.kernel import uapi
from agent.tcp import dump, release
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, echo_works, moved, read_exactly

_SIOCATMARK = 0x8905
_SOL = socket.SOL_SOCKET


def urgent_here(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    return bool(poll.poll(0))


def read_urgent(sock: socket.socket) -> bytes:
    sock.setblocking(True)  # with a timeout Python waits for data that is not urgent
    return sock.recv(1, socket.MSG_OOB)


def at_mark(sock: socket.socket) -> bool:
    (value,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCATMARK, b"\0" * 4))
    return bool(value)


def queued(sock: socket.socket) -> int:
    """Bytes here, on either side of the mark and the urgent one."""
    was = sock.getsockopt(_SOL, uapi.SO_OOBINLINE)
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, 1)
    (value,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), uapi.SIOCINQ, b"\0" * 4))
    sock.setsockopt(_SOL, uapi.SO_OOBINLINE, was)
    return int(value)


@pytest.mark.parametrize("place", ["elsewhere", "in place"])
@pytest.mark.parametrize("inline", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 9), (9, 0), (5000, 70_000)])
def test_unread(
    pair: tuple[Host, Host], kind: str, before: int, after: int, inline: int, place: str
) -> None:
    head, tail = os.urandom(before), os.urandom(after)
    with connected(*pair, kind) as held:
        held.server.setsockopt(_SOL, uapi.SO_OOBINLINE, inline)
        if head:
            held.client.sendall(head)
        held.client.send(b"!", socket.MSG_OOB)
        if tail:
            held.client.sendall(tail)
        wait_until("all is here", lambda: queued(held.server) == before + 1 + after)
        stream = moved(pair[0], held, place)
        held.server.settimeout(10)
        assert stream.urgent == before + 1
        assert urgent_here(held.server)
        assert held.server.getsockopt(_SOL, uapi.SO_OOBINLINE) == inline
        if not inline:
            assert read_urgent(held.server) == b"!"
        got = bytearray()
        while len(got) < before:
            got += held.server.recv(1 << 20)  # never across the mark
        assert bytes(got) == head
        assert at_mark(held.server)
        if inline:
            tail = b"!" + tail
        assert read_exactly(held.server, len(tail)) == tail
        echo_works(held)


def test_read_but_still_in_the_queue(pair: tuple[Host, Host], kind: str) -> None:
    """The process has taken the byte out of line; it must not come again, and nothing is lost."""
    with connected(*pair, kind) as held:
        held.client.sendall(b"before")
        held.client.send(b"!", socket.MSG_OOB)
        held.client.sendall(b"after")
        wait_until("all is here", lambda: queued(held.server) == 12)
        assert read_urgent(held.server) == b"!"
        stream = moved(pair[0], held, "elsewhere")
        held.server.settimeout(10)
        assert (stream.urgent, stream.receive_queue) == (0, b"beforeafter")
        assert read_exactly(held.server, 11) == b"beforeafter"
        with pytest.raises(OSError):
            read_urgent(held.server)
        echo_works(held)


def test_half_closed_behind_it(pair: tuple[Host, Host], kind: str) -> None:
    with connected(*pair, kind) as held:
        held.client.sendall(b"before")
        held.client.send(b"!", socket.MSG_OOB)
        held.client.sendall(b"after")
        held.client.shutdown(socket.SHUT_WR)
        wait_until("all is here", lambda: queued(held.server) == 12)
        moved(pair[0], held, "elsewhere")
        held.server.settimeout(10)
        assert read_urgent(held.server) == b"!"
        data = bytearray()
        while part := held.server.recv(100):
            data += part
        assert bytes(data) == b"beforeafter"
        held.server.sendall(b"end")
        assert read_exactly(held.client, 3) == b"end"


def test_rolled_back(pair: tuple[Host, Host], kind: str) -> None:
    with connected(*pair, kind) as held:
        held.client.sendall(b"before")
        held.client.send(b"!", socket.MSG_OOB)
        held.client.sendall(b"after")
        wait_until("all is here", lambda: queued(held.server) == 12)
        dump(held.server)
        release(held.server)
        assert urgent_here(held.server)
        with contextlib.suppress(BlockingIOError):
            assert held.server.recv(100) == b"before"
        assert read_urgent(held.server) == b"!"
        assert held.server.recv(100) == b"after"
