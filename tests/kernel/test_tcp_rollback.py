"""A dump that is undone leaves the connection as it was."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from agent.kernel import uapi
from agent.tcp import dumping as dump_module
from agent.tcp.dumping import dump
from agent.tcp.inventory import connection_of
from agent.tcp.replay import FIN, RST
from agent.tcp.restoring import abandon, leave_repair, new_socket, release, restore
from agent.tcp.stream import StreamError
from tests.support.agents import Agent
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    Pair,
    connected,
    deaf,
    echo_works,
    listen,
    ports,
    read_exactly,
    readable,
    sniffing,
    state,
)

_SOL, _TCP, _IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP
KEPT = ("SO_REUSEADDR", "IP_TRANSPARENT", "TCP_REPAIR", "SO_SNDBUF", "SO_RCVBUF", "SO_BUF_LOCK")


def options_of(sock: socket.socket) -> dict[str, int]:
    levels = {"SO": _SOL, "IP": _IP, "TCP": _TCP}
    numbers = {name: getattr(uapi, name) for name in KEPT}
    found = {
        name: sock.getsockopt(levels[name.partition("_")[0]], number)
        for name, number in numbers.items()
    }
    return found | {"blocking": os.get_blocking(sock.fileno())}


def set_reuse(sock: socket.socket, reuse: int, transparent: int) -> None:
    sock.setsockopt(_SOL, uapi.SO_REUSEADDR, reuse)
    sock.setsockopt(_IP, uapi.IP_TRANSPARENT, transparent)


@pytest.mark.parametrize("flags", list(itertools.product([0, 1], repeat=2)))
def test_dump_and_release(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int, flags: tuple[int, int]
) -> None:
    """With something in every queue, part of it sent."""
    server, client = pair
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held, sniffing(client) as wire:
        set_reuse(held.server, *flags)
        held.server.setsockopt(_SOL, uapi.SO_SNDBUFFORCE, 1 << 18)
        before = options_of(held.server)
        to_server, to_client = os.urandom(20_000), os.urandom(200_000)
        held.client.sendall(to_server)
        wait_until("all is here", lambda: len(held.server.recv(1 << 16, socket.MSG_PEEK)) == 20_000)
        with deaf(server):
            held.server.sendall(to_client)
            agent.lock(connection_of(held.server))
        image = dump(held.server)
        assert 0 < image.unsent < len(image.send_queue)
        assert held.server.getsockopt(_TCP, uapi.TCP_REPAIR) == 1
        agent.unlock()
        release(held.server, image)
        assert options_of(held.server) == before
        assert_whole(held, to_server, to_client)
        assert not [one for one in wire.segments(outgoing=False) if one.flags & RST]


def assert_whole(pair: Pair, to_server: bytes, to_client: bytes) -> None:
    assert read_exactly(pair.server, len(to_server)) == to_server
    assert read_exactly(pair.client, len(to_client)) == to_client
    echo_works(pair)


@pytest.mark.parametrize("flags", list(itertools.product([0, 1], repeat=2)))
def test_a_dump_that_fails_half_way(
    pair: tuple[Host, Host],
    family: int,
    flags: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is as it was whatever fails; leaving repair mode again is no error."""
    for failing in range(1, 4):  # each of its ioctls
        with connected(*pair, family) as held:
            set_reuse(held.server, *flags)
            before = options_of(held.server)
            held.client.sendall(b"in the queue")
            held.server.sendall(b"on its way")
            assert read_exactly(held.client, 10) == b"on its way"
            wait_until("it is here", functools.partial(readable, held.server))
            calls = iter([uapi.SIOCOUTQ, uapi.SIOCOUTQNSD, uapi.SIOCINQ][: failing - 1])

            def fail(_: int, request: int, calls: Iterator[int] = calls) -> int:
                if next(calls, None) != request:
                    raise OSError(errno.EIO, "Input/output error")
                return 0

            with monkeypatch.context() as patch:
                patch.setattr(dump_module, "ioctl_int", fail)
                with pytest.raises(OSError, match="Input/output"):
                    dump(held.server)
            leave_repair(held.server)
            assert options_of(held.server) == before
            assert_whole(held, b"in the queue", b"")


def test_leave_repair_of_what_was_not_dumped(pair: tuple[Host, Host], family: int) -> None:
    with connected(*pair, family) as held:
        before = options_of(held.server)
        leave_repair(held.server)
        assert options_of(held.server) == before
        held.server.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
        leave_repair(held.server)
        assert options_of(held.server)["TCP_REPAIR"] == 0
        echo_works(held)
    with listen(pair[0], pair[0].address(family)) as listener:
        leave_repair(listener)
        assert state(listener) == uapi.TCP_LISTEN


def test_abandon_says_nothing(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """In repair mode or not, half restored or not bound at all."""
    server, client = pair
    address = server.address(family)
    agent = agents(server, [address])
    with connected(server, client, family) as held, sniffing(client) as wire:
        agent.lock(connection_of(held.server))
        image = dump(held.server)
        abandon(held.server)
        abandon(server.run(restore, image))
        broken = dataclasses.replace(image, window=(0, 2, 1, 0, 0))  # more than there ever was
        half = server.run(new_socket, image.family)
        with pytest.raises(StreamError, match="restoring it failed"):
            restore(broken, half)
        abandon(half)
        abandon(server.run(new_socket, image.family))
        with pytest.raises(StreamError, match="restoring it failed"):
            server.run(restore, broken)
        agent.unlock()
        held.server = server.run(restore, image)
        release(held.server, image)
        held.server.settimeout(10)
        echo_works(held)
        assert not [one for one in wire.segments(outgoing=False) if one.flags & (RST | FIN)]


def test_silence_of_a_dead_process(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """The last copy of a socket in repair mode closes without a word, also when data is unread."""
    server, client = pair
    with connected(server, client, family) as held, sniffing(client) as wire:
        held.client.sendall(b"never read")
        wait_until("it is here", functools.partial(readable, held.server))
        dump(held.server)
        wire.segments(outgoing=False)
        held.server.close()
        with connected(server, client, family) as other:
            echo_works(other)  # goes the same way behind what the close would have sent
            ours = other.client.getsockname()[1]
        seen = [one for one in wire.segments(outgoing=False) if ports(one)[1] != ours]
        assert seen == []
        assert state(held.client) == uapi.TCP_ESTABLISHED
