"""Socket options, buffers and modes are the same after a move, also those that it needs itself."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp import options
from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, release, restore
from agent.tcp.stream import Stream
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, echo_works, read_exactly

_SOL = socket.SOL_SOCKET
_LISTENER_ONLY = {"TCP_FASTOPEN", "IPV6_V6ONLY"}  # may not be set on a connection

# A value for each option of the table that no fresh socket has
VALUES: dict[str, int | bytes] = {
    "SO_REUSEADDR": 1,
    "IP_TRANSPARENT": 1,
    "IPV6_V6ONLY": 1,
    "IP_FREEBIND": 1,
    "IP_TOS": 0x10,
    "IP_TTL": 33,
    "IPV6_TCLASS": 0x28,
    "IPV6_UNICAST_HOPS": 44,
    "SO_KEEPALIVE": 1,
    "SO_OOBINLINE": 1,
    "SO_PRIORITY": 3,
    "SO_LINGER": struct.pack("=ii", 1, 7),
    "SO_REUSEPORT": 1,
    "SO_RCVLOWAT": 99,
    "SO_RCVTIMEO": struct.pack("=qq", 8, 500_000),
    "SO_SNDTIMEO": struct.pack("=qq", 9, 0),
    "SO_BINDTODEVICE": b"eth0\0",
    "SO_TIMESTAMP": 1,
    "SO_TIMESTAMPNS": 1,
    "SO_MARK": 77,
    "SO_BUSY_POLL": 50,
    "SO_MAX_PACING_RATE": 1 << 30,
    "TCP_KEEPIDLE": 1234,
    "TCP_KEEPINTVL": 56,
    "TCP_KEEPCNT": 7,
    "TCP_SYNCNT": 3,
    "TCP_LINGER2": 20,
    "TCP_DEFER_ACCEPT": 7,
    "TCP_CONGESTION": b"reno".ljust(16, b"\0"),
    "TCP_THIN_LINEAR_TIMEOUTS": 1,
    "TCP_USER_TIMEOUT": 90_000,
    "TCP_FASTOPEN": 5,
    "TCP_NOTSENT_LOWAT": 20_000,
    "TCP_SAVE_SYN": 1,
    "TCP_INQ": 1,
    "TCP_TX_DELAY": 500,
    "TCP_CORK": 1,
    "TCP_NODELAY": 1,
}
_SET_ALONG = dict.fromkeys(VALUES, set[tuple[int, int]]())
_SET_ALONG["IP_TOS"] = {(_SOL, uapi.SO_PRIORITY)}
_EXCLUDES = {"SO_TIMESTAMP": "SO_TIMESTAMPNS"}  # the first is off where the second is on


def of_family(family: int, *without: str) -> list[options.Option]:
    found = [one for one in options.TABLE if one.family in (0, family)]
    return [one for one in found if one.name not in without]


def set_option(sock: socket.socket, option: options.Option) -> None:
    sock.setsockopt(option.level, option.number, VALUES[option.name])


def moved(host: Host, sock: socket.socket) -> tuple[Stream, socket.socket]:
    """The image as it arrives, and the socket made of it, released."""
    image = Stream.from_wire(dump(sock).to_wire())
    abandon(sock)
    restored = host.run(restore, image)
    if image.state != uapi.TCP_LISTEN:
        release(restored, image)
    return image, restored


def image_of(sock: socket.socket) -> Stream:
    image = dump(sock)
    if image.state != uapi.TCP_LISTEN:
        release(sock, image)
    return image


def test_every_option_has_a_value_here() -> None:
    assert set(VALUES) == {one.name for one in options.TABLE}


@pytest.mark.parametrize("left_out", _EXCLUDES.items())
def test_options_of_a_connection(
    pair: tuple[Host, Host], family: int, left_out: tuple[str, str]
) -> None:
    server, client = pair
    with connected(server, client, family) as held:
        wanted = of_family(held.server.family, *_LISTENER_ONLY, *left_out)
        for option in wanted:
            set_option(held.server, option)
        before, held.server = moved(server, held.server)
        assert {(one.level, one.number) for one in wanted} <= numbers(before)
        assert image_of(held.server).options == before.options


@pytest.mark.parametrize("name", sorted(VALUES.keys() - _LISTENER_ONLY))
def test_each_option_alone(pair: tuple[Host, Host], name: str) -> None:
    """None needs another one; and what was not set stays as the kernel has it."""
    server, client = pair
    (option,) = [one for one in options.TABLE if one.name == name]
    with connected(server, client, 6 if option.family == socket.AF_INET6 else 4) as held:
        held.server.setsockopt(_SOL, uapi.SO_REUSEADDR, 0)  # inherited from its listener
        fresh = numbers(image_of(held.server))
        set_option(held.server, option)
        before, held.server = moved(server, held.server)
        assert (option.level, option.number, VALUES[name]) in before.options
        assert numbers(before) <= fresh | {(option.level, option.number)} | _SET_ALONG[name]
        assert image_of(held.server).options == before.options


def test_a_priority_of_zero_beside_a_type_of_service(pair: tuple[Host, Host]) -> None:
    """Setting IP_TOS also sets the priority."""
    with connected(*pair, 4) as held:
        held.server.setsockopt(socket.IPPROTO_IP, uapi.IP_TOS, 0x10)
        assert held.server.getsockopt(_SOL, uapi.SO_PRIORITY) == 6
        held.server.setsockopt(_SOL, uapi.SO_PRIORITY, 0)
        _, held.server = moved(pair[0], held.server)
        assert held.server.getsockopt(_SOL, uapi.SO_PRIORITY) == 0


def numbers(image: Stream) -> set[tuple[int, int]]:
    return {(level, number) for level, number, _ in image.options}


def test_the_options_that_a_move_uses_itself(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    for reuse in (0, 1):
        for transparent in (0, 1):
            with connected(server, client, family) as held:
                held.server.setsockopt(_SOL, uapi.SO_REUSEADDR, reuse)
                held.server.setsockopt(socket.IPPROTO_IP, uapi.IP_TRANSPARENT, transparent)
                _, held.server = moved(server, held.server)
                held.server.settimeout(10)
                assert held.server.getsockopt(_SOL, uapi.SO_REUSEADDR) == reuse
                assert transparency(held.server) == (transparent,) * len(transparency(held.server))
                echo_works(held)


def transparency(sock: socket.socket) -> tuple[int, ...]:
    found = [sock.getsockopt(socket.IPPROTO_IP, uapi.IP_TRANSPARENT)]
    if sock.family == socket.AF_INET6:
        found.append(sock.getsockopt(socket.IPPROTO_IPV6, uapi.IPV6_TRANSPARENT))
    return tuple(found)


@pytest.mark.parametrize("sizes", [(0, 0), (40_000, 0), (0, 30_000), (50_000, 60_000)])
def test_buffers_and_their_locks(pair: tuple[Host, Host], sizes: tuple[int, int]) -> None:
    with connected(*pair, 4) as held:
        for number, size in zip((uapi.SO_SNDBUF, uapi.SO_RCVBUF), sizes, strict=True):
            if size:
                held.server.setsockopt(_SOL, number, size)
        before, held.server = moved(pair[0], held.server)
        assert before.buffer_locks == bool(sizes[0]) + 2 * bool(sizes[1])
        after = image_of(held.server)
        for name in ("send_buffer", "receive_buffer", "buffer_locks"):
            assert getattr(after, name) == getattr(before, name), name


@pytest.mark.parametrize("blocking", [True, False])
def test_blocking_mode(pair: tuple[Host, Host], blocking: bool) -> None:
    with connected(*pair, 4) as held:
        os.set_blocking(held.server.fileno(), blocking)
        _, held.server = moved(pair[0], held.server)
        assert os.get_blocking(held.server.fileno()) == blocking


def test_unsent_data_beyond_the_low_water_mark(pair: tuple[Host, Host], family: int) -> None:
    """TCP_NOTSENT_LOWAT, set late or small, does not keep the queue from being restored."""
    with connected(*pair, family) as held:
        held.client.setsockopt(_SOL, uapi.SO_RCVBUF, 4096)
        held.server.setsockopt(_SOL, uapi.SO_SNDBUFFORCE, 1 << 18)
        data = os.urandom(1 << 20)
        held.server.setblocking(False)
        sent = 0
        fd = held.server.fileno()
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += held.server.send(data[sent:])
        wait_until("some is unsent", lambda: ioctl_int(fd, uapi.SIOCOUTQNSD) > 100_000)
        held.server.setsockopt(socket.IPPROTO_TCP, uapi.TCP_NOTSENT_LOWAT, 1)
        image, held.server = moved(pair[0], held.server)
        assert image.unsent > 100_000
        assert held.server.getsockopt(socket.IPPROTO_TCP, uapi.TCP_NOTSENT_LOWAT) == 1
        assert read_exactly(held.client, sent) == data[:sent]
