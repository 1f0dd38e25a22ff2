"""A connection that both sides have closed, or that was reset, while data is still to be read."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp import Stream, StreamError, abandon, disconnect, dump, release, restore
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, sniffing, state

_ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI


def events(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, _ALL)
    return dict(poll.poll(0)).get(sock.fileno(), 0)


def close_both(server: socket.socket, client: socket.socket, *, reset: bool) -> None:
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    client.close()
    wait_until("it is closed", lambda: state(server) == uapi.TCP_CLOSE)


@pytest.mark.parametrize("place", ["elsewhere", "in place"])
@pytest.mark.parametrize("reset", [False, True], ids=["ended", "reset"])
@pytest.mark.parametrize("amount", [0, 1, 200_000])
def test_data_and_end(
    pair: tuple[Host, Host], kind: str, amount: int, reset: bool, place: str
) -> None:
    host, _ = pair
    data = os.urandom(amount)
    with connected(*pair, kind) as held, sniffing(pair[1]) as sniffer:
        held.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        held.client.sendall(data)
        wait_until("all is here", lambda: queued(held.server) == amount)
        close_both(held.server, held.client, reset=reset)
        sniffer.segments(outgoing=False)
        name, before = held.server.getsockname(), events(held.server)
        stream = Stream.from_bytes(dump(held.server).to_bytes())
        assert stream.receive_queue == data
        if place == "in place":
            disconnect(held.server)
        else:
            abandon(held.server)
            held.server = host.socket(stream.family)
        host.run(restore, stream, held.server)
        host.run(release, held.server)
        assert state(held.server) == uapi.TCP_CLOSE
        assert held.server.getsockname() == name
        assert events(held.server) == before
        with pytest.raises(OSError, match="not connected"):
            held.server.getpeername()
        if amount or not reset:
            assert read(held.server, amount) == data
        if reset:
            with pytest.raises(ConnectionResetError):
                held.server.recv(1)
        assert held.server.recv(1) == b""
        assert not sniffer.segments(outgoing=False)


def queued(sock: socket.socket) -> int:
    return ioctl_int(sock.fileno(), uapi.SIOCINQ)


def read(sock: socket.socket, amount: int) -> bytes:
    data = bytearray()
    while len(data) < amount:
        data += sock.recv(amount - len(data))
    return bytes(data)


def test_many_from_one_port(pair: tuple[Host, Host], kind: str) -> None:
    """They have the same local end; each stands for itself."""
    host, _ = pair
    with contextlib.ExitStack() as stack:
        sockets = []
        port = 0
        for number in range(5):
            held = stack.enter_context(connected(*pair, kind, port))
            port = held.server.getsockname()[1]
            held.client.sendall(bytes([number]))
            wait_until("it is here", lambda held=held: queued(held.server))  # type: ignore[misc]
            close_both(held.server, held.client, reset=False)
            stream = dump(held.server)
            abandon(held.server)
            sockets.append(host.run(restore, stream))
        for number, sock in enumerate(sockets):
            host.run(release, sock)
            assert sock.recv(10) == bytes([number])
            sock.close()


def test_never_connected(pair: tuple[Host, Host]) -> None:
    with pair[0].socket(socket.AF_INET) as fresh:
        fresh.bind(("10.99.0.1", 0))
        with pytest.raises(StreamError, match="has not been connected"):
            dump(fresh)
