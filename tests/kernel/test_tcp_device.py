"""Connections that are bound to a device, by the program or by a link-local address."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.kernel import uapi
from agent.tcp import Stream, StreamError, abandon, dump, release, restore
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, echo_works, moved, readable, state

_SOL = socket.SOL_SOCKET


def index(host: Host, name: str = "eth0") -> int:
    return host.run(socket.if_nametoindex, name)


def device_of(sock: socket.socket) -> bytes:
    return sock.getsockopt(_SOL, uapi.SO_BINDTODEVICE, 16).rstrip(b"\0")


@pytest.fixture
def hosts(trio: tuple[Host, Host, Host]) -> Iterator[tuple[Host, Host, Host]]:
    """At the destination the device has the same name and another index."""
    source, destination, _ = trio
    destination.ip("link", "set", "eth0", "down")
    destination.ip("link", "set", "eth0", "name", "port")
    destination.ip("link", "add", "eth0", "type", "bridge", "mcast_snooping", "0")
    destination.ip("link", "set", "eth0", "addrgenmode", "none", "up")
    destination.ip("link", "set", "port", "master", "eth0", "up")
    assert index(source) != index(destination)
    yield trio


def test_a_link_local_address_has_its_scope_by_name(hosts: tuple[Host, Host, Host]) -> None:
    source, destination, client = hosts
    with connected(source, client, "link-local") as held:
        held.client.sendall(b"before")
        wait_until("it is here", lambda: readable(held.server))
        stream = Stream.from_bytes(dump(held.server).to_bytes())
        assert stream.scope == index(source)
        abandon(held.server)
        address = f"{stream.local[0]}/64"
        source.ip("address", "delete", address, "dev", "eth0")
        destination.ip("address", "add", address, "dev", "eth0", "nodad")
        client.ip("neigh", "flush", "dev", "eth0")
        held.server = destination.run(restore, stream)
        wait_until("the address is here", lambda: local_route(destination, stream.local[0]))
        destination.run(release, held.server)
        assert held.server.getsockname()[3] == index(destination)
        assert held.server.getpeername()[3] == index(destination)
        held.server.settimeout(10)
        assert held.server.recv(6) == b"before"
        echo_works(held)


def local_route(host: Host, address: str) -> bool:
    return address in host.ip("-6", "route", "show", "table", "local", "dev", "eth0")


def test_a_device_that_is_missing(hosts: tuple[Host, Host, Host]) -> None:
    source, destination, client = hosts
    with connected(source, client, "link-local") as held:
        stream = dump(held.server)
        destination.ip("link", "set", "eth0", "name", "eth7")
        with pytest.raises(StreamError, match="No such device"):
            destination.run(restore, stream)
        release(held.server)
        echo_works(held)


@pytest.mark.parametrize("place", ["elsewhere", "in place"])
def test_closed_with_data_to_read(pair: tuple[Host, Host], kind: str, place: str) -> None:
    """It stands for a moment with the loopback address, which the device does not reach."""
    with connected(*pair, kind) as held:
        held.server.setsockopt(_SOL, uapi.SO_BINDTODEVICE, b"eth0")
        held.client.sendall(b"the last words")
        wait_until("it is here", lambda: readable(held.server))
        held.server.shutdown(socket.SHUT_WR)
        held.client.close()
        wait_until("it is closed", lambda: state(held.server) == uapi.TCP_CLOSE)
        moved(pair[0], held, place)
        assert state(held.server) == uapi.TCP_CLOSE
        assert device_of(held.server) == b"eth0"
        assert held.server.recv(100) == b"the last words"
        assert held.server.recv(100) == b""
