"""Listening sockets move, beside the connections that they have accepted."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

import pytest

from agent import tcp
from agent.kernel import uapi
from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, new_socket, release, restore
from agent.tcp.steal import accept_queue
from agent.tcp.stream import Stream, StreamError
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    begin_connect,
    connect,
    connect_as,
    echo_works,
    listen,
    listen_as,
    state,
)

_SOL = socket.SOL_SOCKET
_TCP = socket.IPPROTO_TCP


def image_of(sock: socket.socket) -> Stream:
    return Stream.from_wire(dump(sock).to_wire())


@pytest.mark.parametrize("backlog", [0, 1, 77])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_listener(pair: tuple[Host, Host], family: int, backlog: int, blocking: bool) -> None:
    server, client = pair
    listener = listen(server, server.address(family))
    listener.listen(backlog)
    listener.setsockopt(_TCP, uapi.TCP_DEFER_ACCEPT, 0)
    listener.setsockopt(_TCP, uapi.TCP_FASTOPEN, 5)
    listener.setsockopt(_SOL, uapi.SO_RCVBUF, 50_000)
    os.set_blocking(listener.fileno(), blocking)
    before = image_of(listener)
    assert (before.state, before.backlog) == (uapi.TCP_LISTEN, backlog)
    abandon(listener)
    with server.run(restore, before) as restored:
        assert dump(restored) == before
        assert os.get_blocking(restored.fileno()) == blocking
        restored.settimeout(10)
        made = connect(client, restored)
        with contextlib.closing(made):
            echo_works(made)


def test_a_listener_in_place(pair: tuple[Host, Host], kind: str) -> None:
    """It stops to listen, forgets all, and listens again as it did."""
    server, client = pair
    with listen_as(server, kind) as listener:
        listener.setsockopt(_TCP, uapi.TCP_FASTOPEN, 5)
        before = tcp.dump(listener)
        tcp.disconnect(listener)
        assert state(listener) == uapi.TCP_CLOSE
        server.run(tcp.restore, before, listener)
        tcp.release(listener)
        assert tcp.dump(listener) == before
        with contextlib.closing(connect_as(client, listener)) as made:
            echo_works(made)


@pytest.mark.parametrize("v6only", [0, 1])
def test_a_listener_on_any_address(pair: tuple[Host, Host], v6only: int) -> None:
    server, client = pair
    listener = server.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, uapi.IPV6_V6ONLY, v6only)
    listener.bind(("::", 0))
    listener.listen(8)
    before = image_of(listener)
    abandon(listener)
    with server.run(restore, before) as restored:
        assert dump(restored) == before
        restored.settimeout(10)
        port = before.local[1]
        with begin_connect(client, server.address6, port):
            restored.accept()[0].close()
        with begin_connect(client, server.address4, port) as over_ipv4:
            if v6only:
                refused = (uapi.TCP_CLOSE,)
                wait_until("it is refused", lambda: state(over_ipv4) in refused)
            else:
                restored.accept()[0].close()


@pytest.mark.parametrize("reuse", list(itertools.product([0, 1], repeat=3)))
@pytest.mark.parametrize("first", ["listener", "connections"])
def test_reuse_options_beside_connections(
    pair: tuple[Host, Host], family: int, reuse: tuple[int, int, int], first: str
) -> None:
    """Every mix of SO_REUSEADDR of a listener and its connection, and SO_REUSEPORT of both."""
    server, client = pair
    listener = server.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
    listener.setsockopt(_SOL, uapi.SO_REUSEADDR, reuse[0])
    listener.setsockopt(_SOL, uapi.SO_REUSEPORT, reuse[2])
    listener.bind((server.address(family), 0))
    listener.listen(8)
    held = [connect(client, listener) for _ in range(3)]
    for one in held:
        one.server.setsockopt(_SOL, uapi.SO_REUSEADDR, reuse[1])
    sockets = [listener, *(one.server for one in held)]
    before = [image_of(sock) for sock in sockets]
    for sock in sockets:
        abandon(sock)

    images = before if first == "listener" else [*before[1:], before[0]]
    spare = [server.run(new_socket, image.family) for image in images]
    for image, sock in zip(images, spare, strict=True):
        restore(image, sock)
    listener = spare.pop(images.index(before[0]))
    for image, one, sock in zip(before[1:], held, spare, strict=True):
        release(sock, image)
        one.server = sock
    with contextlib.closing(listener):
        assert listener.getsockopt(_SOL, uapi.SO_REUSEADDR) == reuse[0]
        assert listener.getsockopt(_SOL, uapi.SO_REUSEPORT) == reuse[2]
        listener.settimeout(10)
        held.append(connect(client, listener))
    for one, expected in zip(held, [reuse[1]] * 3 + [reuse[0]], strict=True):
        assert one.server.getsockopt(_SOL, uapi.SO_REUSEADDR) == expected
        one.server.settimeout(10)
        echo_works(one)
        one.close()


def test_an_accept_queue_that_is_not_empty(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with listen(server, server.address(family)) as listener:
        port = listener.getsockname()[1]
        with begin_connect(client, server.address(family), port):
            wait_until("it waits to be accepted", lambda: accept_queue(listener) == 1)
            with pytest.raises(StreamError, match="1 connections wait to be accepted"):
                dump(listener)
            served, _ = listener.accept()
            served.close()
        assert dump(listener).backlog == 64


def test_states_that_do_not_move(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with server.socket(socket.AF_INET if family == 4 else socket.AF_INET6) as fresh:
        with pytest.raises(StreamError, match="has not been connected"):
            dump(fresh)
        assert fresh.getsockopt(_TCP, uapi.TCP_REPAIR) == 0
    absent = {4: "10.99.0.99", 6: "fd99::99"}[family]
    with begin_connect(client, absent, 9) as opening:
        with pytest.raises(StreamError, match="not of this network namespace"):
            dump(opening)  # called in another one
        assert opening.getsockopt(_TCP, uapi.TCP_REPAIR) == 0
