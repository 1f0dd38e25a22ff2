"""Socket options, buffers and modes are the same after a move, also those that it needs itself."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp.dumping import dump
from agent.tcp.option_check import missing
from agent.tcp.option_stays import STAYS
from agent.tcp.option_table import BY_NAME, CONNECTION, LISTENING, OPENING, TABLE, level_of
from agent.tcp.restoring import abandon, release, restore
from agent.tcp.stream import Stream
from tests.support.netns import Host, wait_until
from tests.support.options import CASES, UNKNOWN, give, key, of_family, surviving_sigio, with_all
from tests.support.tcp import Pair, connect, connected, echo_works, listen, read_exactly

_SOL = socket.SOL_SOCKET
# Where the first is on, the others of its line are off.
_VARIANTS = (
    {"SO_TIMESTAMPNS", "SO_TIMESTAMP_NEW", "SO_TIMESTAMPNS_NEW", "SO_TIMESTAMPING_NEW"},
    {"SO_TIMESTAMP", "SO_TIMESTAMP_NEW", "SO_TIMESTAMPNS_NEW", "SO_TIMESTAMPING_NEW"},
    {"SO_TIMESTAMP", "SO_TIMESTAMPNS"},
)
# SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST: what connection tracking knows
_NETFILTER = {(socket.IPPROTO_IP, 80), (socket.IPPROTO_IPV6, 80)}
_libc = ctypes.CDLL(None)
NOBODY = {"ipv4": "10.99.0.99", "ipv6": "fd99::99", "mapped": "::ffff:10.99.0.99"}
KINDS = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "mapped": socket.AF_INET6}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    with surviving_sigio():
        yield


def local_address(host: Host, kind: str) -> str:
    return {"ipv4": host.address4, "ipv6": host.address6, "mapped": f"::ffff:{host.address4}"}[kind]


@contextlib.contextmanager
def connection(server: Host, client: Host, kind: str) -> Iterator[Pair]:
    with listen(server, local_address(server, kind)) as listener:
        pair = connect(client, listener)
    try:
        pair.server.setsockopt(_SOL, uapi.SO_REUSEADDR, 0)  # inherited from its listener
        yield pair
    finally:
        pair.close()


def listener(host: Host, kind: str, *names: str) -> socket.socket:
    sock = host.socket(KINDS[kind], socket.SOCK_STREAM)
    for name in names:
        give(sock, name)
    sock.bind((local_address(host, kind), 0))
    sock.listen(5)
    if "TCP_QUICKACK" in names:
        give(sock, "TCP_QUICKACK")  # listen() has set it back
    return sock


def given(sock: socket.socket, name: str) -> bool:
    """Give the option; where the kernel refuses it, see that the check says so."""
    try:
        give(sock, name)
    except OSError as error:
        wanted = [(*key(name), CASES[name].value)]
        (lacking,) = missing(wanted, sock.family)
        assert lacking.name == name and error.errno == errno.EOPNOTSUPP
        return False
    return True


def moved(host: Host, sock: socket.socket) -> tuple[Stream, socket.socket]:
    """The image as it arrives, and the socket made of it, released."""
    image = Stream.from_wire(host.run(dump, sock).to_wire())
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


def test_every_option_has_a_case() -> None:
    assert CASES.keys() == {one.name for one in TABLE}
    assert not UNKNOWN


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_that_this_kernel_answers(pair: tuple[Host, Host], kind: str) -> None:
    """Also those that no header here knows."""
    known = {(one.level, one.number) for one in TABLE}
    known |= {(level_of(one.name), one.number) for one in STAYS}
    with connection(*pair, kind) as held, listener(pair[0], kind) as listening:
        for sock in (held.server, listening):
            for level in (_SOL, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
                answered = {
                    (level, number) for number in range(1, 200) if answers(sock, level, number)
                }
                assert answered <= known | _NETFILTER


def answers(sock: socket.socket, level: int, number: int) -> bool:
    room, size = ctypes.create_string_buffer(1024), ctypes.c_uint(1024)
    return not _libc.getsockopt(sock.fileno(), level, number, room, ctypes.byref(size))


@pytest.mark.parametrize("without", _VARIANTS, ids=["first", "ns", "new"])
@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_connection(pair: tuple[Host, Host], kind: str, without: set[str]) -> None:
    server, client = pair
    with connection(server, client, kind) as held:
        wanted = {
            name
            for name in of_family(KINDS[kind], CONNECTION)
            if name not in without and given(held.server, name)
        }
        before, held.server = moved(server, held.server)
        assert {key(name) for name in wanted} <= numbers(before)
        assert image_of(held.server).options == before.options


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in of_family(KINDS[kind], CONNECTION)],
)
def test_option_of_a_connection(pair: tuple[Host, Host], kind: str, name: str) -> None:
    """None needs another one; and what was not set stays as the kernel has it."""
    server, client = pair
    with connection(server, client, kind) as held:
        fresh = image_of(held.server)
        if not given(held.server, name):
            return
        before, held.server = moved(server, held.server)
        assert (*key(name), CASES[name].value) in before.options
        assert numbers(before) <= numbers(fresh) | with_all(name)
        assert image_of(held.server).options == before.options


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in of_family(KINDS[kind], OPENING)],
)
def test_option_of_an_opening_connection(pair: tuple[Host, Host], kind: str, name: str) -> None:
    """Nobody answers; what counts for the next SYN is not lost."""
    server, _ = pair
    with server.socket(KINDS[kind], socket.SOCK_STREAM) as sock:
        before_connect = BY_NAME[name].of == OPENING
        if before_connect and not given(sock, name):
            return
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((NOBODY[kind], 80))
        if not before_connect and not given(sock, name):
            return
        before, restored = moved(server, sock)
    with restored:
        assert before.state == uapi.TCP_SYN_SENT
        assert (*key(name), CASES[name].value) in before.options
        assert server.run(image_of, restored).options == before.options


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in of_family(KINDS[kind], LISTENING)],
)
def test_option_of_a_listener(pair: tuple[Host, Host], kind: str, name: str) -> None:
    if (kind, name) == ("mapped", "IPV6_V6ONLY"):
        return  # the one excludes the other
    server, _ = pair
    with listener(server, kind) as plain:
        fresh = dump(plain)
    with server.socket(KINDS[kind], socket.SOCK_STREAM) as trial:
        if not given(trial, name):
            return
    before, restored = moved(server, listener(server, kind, name))
    with restored:
        assert (*key(name), CASES[name].value) in before.options
        assert numbers(before) <= numbers(fresh) | with_all(name)
        assert dump(restored).options == before.options


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
