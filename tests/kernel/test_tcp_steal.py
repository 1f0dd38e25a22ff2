"""Copies of a process's sockets: which are taken, and that nothing is left open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from agent.kernel import uapi
from agent.netlock.render import Connection
from agent.tcp import inventory
from agent.tcp.dumping import dump
from agent.tcp.inventory import (
    AcceptQueueStuck,
    connection_of,
    drain_accept_queues,
    half_open,
    take_inventory,
)
from agent.tcp.steal import accept_queue, socket_descriptors, steal
from tests.support.netns import Host, wait_until
from tests.support.tcp import begin_connect, connected, deaf, listen, readable, state

ME = os.getpid()


@pytest.fixture
def pidfds() -> Iterator[dict[int, int]]:
    """This very process plays the one whose sockets are taken."""
    pidfd = os.pidfd_open(ME)
    yield {ME: pidfd}
    os.close(pidfd)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def close(stolen: dict[int, socket.socket]) -> None:
    for sock in stolen.values():
        sock.close()


def test_what_is_taken(pair: tuple[Host, Host], family: int, pidfds: dict[int, int]) -> None:
    server, client = pair
    address = server.address(family)
    with contextlib.ExitStack() as opened:
        held = opened.enter_context(connected(server, client, family))
        listener = opened.enter_context(listen(server, address))
        others = [
            opened.enter_context(sock)
            for sock in (
                server.socket(socket.AF_INET, socket.SOCK_STREAM),
                server.socket(socket.AF_INET, socket.SOCK_DGRAM),
                server.socket(socket.AF_INET, socket.SOCK_STREAM, uapi.IPPROTO_MPTCP),
                server.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
                server.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0),
                *socket.socketpair(),
            )
        ]
        found = socket_descriptors([ME])
        wanted = {inode(sock) for sock in (held.server, held.client, listener)}
        assert wanted | {inode(sock) for sock in others} <= found.keys()
        stolen = steal(pidfds, found)
        assert wanted <= stolen.keys()
        assert not {inode(sock) for sock in others} & stolen.keys()
        assert stolen[inode(listener)].getsockname() == listener.getsockname()
        assert all(not sock.get_inheritable() for sock in stolen.values())
        close(stolen)
        held.server.sendall(b"still ours")
        assert held.client.recv(10) == b"still ours"


def test_a_process_that_has_gone(pidfds: dict[int, int]) -> None:
    assert socket_descriptors([1 << 30]) == {}
    assert steal(pidfds, {}) == {}


def test_a_number_that_is_used_again(pair: tuple[Host, Host], pidfds: dict[int, int]) -> None:
    """Between the list and the copy the process has closed the socket and opened something."""
    with connected(*pair, 4) as held, connected(*pair, 4) as other:
        gone = inode(held.server)
        number = held.server.fileno()
        reader, writer = os.pipe()
        for now in (reader, other.server.fileno(), number):
            expected = [] if now != number else [gone]
            stolen = steal(pidfds, {gone: (ME, now)})
            assert list(stolen) == expected
            close(stolen)
        os.close(reader)
        os.close(writer)
        assert steal(pidfds, {gone: (ME, 1 << 20)}) == {}


def test_a_closed_connection_is_not_a_fresh_socket(
    pair: tuple[Host, Host], family: int, pidfds: dict[int, int]
) -> None:
    with connected(*pair, family) as held, connected(*pair, family) as other:
        held.client.sendall(b"12345")
        wait_until("it is here", lambda: readable(held.server))
        held.server.shutdown(socket.SHUT_WR)
        held.client.close()
        wait_until("both are closed", lambda: state(held.server) == uapi.TCP_CLOSE)
        with socket.socket(held.server.family) as fresh:
            sockets = (other.server, held.server, fresh)
            stolen = steal(pidfds, {inode(sock): (ME, sock.fileno()) for sock in sockets})
        assert list(stolen) == [inode(other.server), inode(held.server)]
        assert dump(stolen[inode(held.server)]).receive_queue == b"12345"
        close(stolen)


def test_inventory(pair: tuple[Host, Host], family: int, pidfds: dict[int, int]) -> None:
    server, client = pair
    with connected(server, client, family) as held, listen(server, "::") as any_address:
        over_ipv4 = client.socket(socket.AF_INET)
        over_ipv4.connect((server.address4, any_address.getsockname()[1]))
        mapped, _ = any_address.accept()
        with mapped, over_ipv4:
            found = take_inventory(pidfds)
            expected = Connection(
                4, server.address4, mapped.getsockname()[1], *over_ipv4.getsockname()
            )
            assert connection_of(mapped) == expected
            assert {held.connection(), expected} <= set(found.connections)
            assert len(found.families) == len(found.connections) + 1  # the listener


def test_an_accept_queue_that_drains(
    pair: tuple[Host, Host], family: int, pidfds: dict[int, int]
) -> None:
    server, client = pair
    with listen(server, server.address(family)) as listener:
        asyncio.run(drain_accept_queues(pidfds))
        with begin_connect(client, *listener.getsockname()[:2]):
            wait_until("it waits", lambda: accept_queue(listener) == 1)
            later = threading.Timer(0.05, lambda: listener.accept()[0].close())
            later.start()
            asyncio.run(drain_accept_queues(pidfds))
            assert accept_queue(listener) == 0
            later.join()


def test_an_accept_queue_that_is_stuck(
    pair: tuple[Host, Host], family: int, pidfds: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_SETTLE", 0.1)
    server, client = pair
    with listen(server, server.address(family)) as listener:
        address, port = listener.getsockname()[:2]
        with begin_connect(client, address, port), begin_connect(client, address, port):
            wait_until("they wait", lambda: accept_queue(listener) == 2)
            with pytest.raises(AcceptQueueStuck) as raised:
                asyncio.run(drain_accept_queues(pidfds))
            assert "2 connections" in raised.value.message and str(port) in raised.value.message


def test_half_open_connections(
    pair: tuple[Host, Host], family: int, pidfds: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose peer does not answer is for the peer to open again."""
    monkeypatch.setattr(inventory, "_SETTLE", 0.1)
    server, client = pair
    with listen(server, server.address(family)) as listener:
        port = listener.getsockname()[1]
        with deaf(client), begin_connect(client, *listener.getsockname()[:2]):
            wait_until("it is half open", lambda: server.run(half_open, [port]) == 1)
            assert server.run(half_open, [port + 1]) == 0
            server.run(asyncio.run, drain_accept_queues(pidfds))
