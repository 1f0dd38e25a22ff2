"""Options between hosts that are not alike, and onto the same socket; what cannot move is told."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.kernel import filter as socket_filter
from agent.kernel import uapi
from agent.kernel.syscalls import connect_unspecified
from agent.tcp import options
from agent.tcp.dumping import dump
from agent.tcp.option_check import Missing, Sieve, missing
from agent.tcp.option_readings import FilterStays, plan_of, read
from agent.tcp.option_table import BY_NAME, CONNECTION, FCNTL, LISTENING, MAX_FILTER
from agent.tcp.restoring import abandon, release, restore
from agent.tcp.stream import Stream
from tests.support.netns import Host
from tests.support.options import CASES, OWNER, give, key, of_family, surviving_sigio
from tests.support.tcp import connected, echo_works

T = TypeVar("T")

_SOL, _TCP, _IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K


@pytest.fixture(autouse=True)
def _other_hosts() -> Iterator[None]:
    with surviving_sigio():
        yield
    forget()


def forget() -> None:
    """Options remember what this host's fresh sockets have: here it is several hosts."""
    plan_of.cache_clear()
    options._given.cache_clear()


def on(host: Host, function: Callable[..., T], *args: object) -> T:
    forget()
    return host.run(function, *args)


# [sysctl, its values at the source and at the destination (None: as it is), option]
_CONGESTION = "net/ipv4/tcp_congestion_control"
_DEFAULTS = [
    (_CONGESTION, "reno", None, "TCP_CONGESTION"),
    (_CONGESTION, None, "reno", "TCP_CONGESTION"),
    ("net/ipv4/ip_no_pmtu_disc", 1, 0, "IP_MTU_DISCOVER"),
    ("net/ipv4/ip_no_pmtu_disc", 0, 1, "IP_MTU_DISCOVER"),
    ("net/ipv4/tcp_rto_max_ms", 120_000, 60_000, "TCP_RTO_MAX_MS"),
    ("net/ipv4/tcp_rto_max_ms", 60_000, 120_000, "TCP_RTO_MAX_MS"),
    ("net/core/txrehash", 0, 1, "SO_TXREHASH"),
]


@pytest.mark.parametrize("row", _DEFAULTS, ids=lambda row: f"{row[3]}-{row[1]}-{row[2]}")
def test_a_default_that_a_socket_keeps_for_life(
    trio: tuple[Host, Host, Host], family: int, row: tuple[str, Any, Any, str]
) -> None:
    source, destination, client = trio
    sysctl, here, there, name = row
    if not Path("/proc/sys", sysctl).exists():
        return  # nor the option
    for host, value in ((source, here), (destination, there)):
        if value is not None:
            host.sysctl(sysctl, value)
    with connected(source, client, family) as held:
        before = read(held.server, BY_NAME[name])
        other = on(destination, fresh_value, held.server.family, name)
        assert before != other
        image = on(source, dump, held.server)
        abandon(held.server)
        destination.add_address("10.99.0.1" if family == 4 else "fd99::1")
        held.server = on(destination, restore, image)
        release(held.server, image)
        assert read(held.server, BY_NAME[name]) == before


def fresh_value(family: int, name: str) -> options.OptionValue:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        return read(sock, BY_NAME[name])


def test_a_default_that_follows_the_host(trio: tuple[Host, Host, Host], family: int) -> None:
    """Not set by the program, it is the sysctl of the host where the socket is."""
    source, destination, client = trio
    source.sysctl("net/ipv4/tcp_keepalive_time", 1000)
    destination.sysctl("net/ipv4/tcp_keepalive_time", 500)
    with connected(source, client, family) as held:
        image = on(source, dump, held.server)
        abandon(held.server)
        destination.add_address("10.99.0.1" if family == 4 else "fd99::1")
        held.server = on(destination, restore, image)
        release(held.server, image)
        assert held.server.getsockopt(_TCP, uapi.TCP_KEEPIDLE) == 500


def test_in_place(pair: tuple[Host, Host], family: int) -> None:
    """Onto the socket itself, which still has what it had, also what is not to be set again."""
    server, client = pair
    with connected(server, client, family) as held:
        level = socket.AF_INET if family == 4 else socket.AF_INET6
        for name in of_family(level, CONNECTION):
            if not name.startswith(("SO_TIMESTAMP", "IPV6_RTHDR", "SO_RESERVE_MEM")):
                give(held.server, name)
        image = Stream.from_wire(dump(held.server).to_wire())
        assert (*key("SO_LOCK_FILTER"), 1) in map(tuple, image.options)
        connect_unspecified(held.server.fileno())
        held.server.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
        held.server.getsockopt(_SOL, socket.SO_ERROR)
        server.run(restore, image, held.server, ready=False)
        release(held.server, image)
        after = dump(held.server)
        assert [tuple(one) for one in image.options] == after.options
        release(held.server, after)


def test_a_filter_is_in_force(pair: tuple[Host, Host]) -> None:
    server, client = pair
    with connected(server, client, 4) as held:
        socket_filter.attach_filter(held.server, _DROP_ALL)
        image = dump(held.server)
        assert (*key("SO_ATTACH_FILTER"), _DROP_ALL) in image.options
        abandon(held.server)
        held.server = server.run(restore, image)
        release(held.server, image)
        held.server.settimeout(0.2)
        held.client.send(b"not heard")
        with pytest.raises(TimeoutError):
            held.server.recv(9)
        held.server.setsockopt(_SOL, 27, 0)  # SO_DETACH_FILTER
        held.server.settimeout(10)
        assert held.server.recv(9) == b"not heard"


@pytest.mark.parametrize("length", [1, 2, 100, MAX_FILTER])
def test_filters_of_any_length(pair: tuple[Host, Host], length: int) -> None:
    nothing = struct.pack("=HBBI", 0x00, 0, 0, 7)  # BPF_LD | BPF_IMM
    program = nothing * (length - 1) + struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF)
    with connected(*pair, 6) as held:
        socket_filter.attach_filter(held.server, program)
        image = dump(held.server)
        abandon(held.server)
        held.server = pair[0].run(restore, image)
        release(held.server, image)
        assert socket_filter.get_filter(held.server.fileno()) == program
        held.server.settimeout(10)
        echo_works(held)


def test_a_filter_that_is_too_long(pair: tuple[Host, Host]) -> None:
    program = _DROP_ALL * (MAX_FILTER + 1)
    with connected(*pair, 4) as held:
        socket_filter.attach_filter(held.server, program)
        with pytest.raises(FilterStays, match=str(MAX_FILTER + 1)):
            dump(held.server)


def test_an_ebpf_filter(pair: tuple[Host, Host], family: int) -> None:
    with connected(*pair, family) as held:
        attach_ebpf(held.server)
        with pytest.raises(FilterStays, match="eBPF"):
            dump(held.server)
        held.server.settimeout(10)
        echo_works(held)  # it is as before


def attach_ebpf(sock: socket.socket) -> None:
    """A program that accepts all: r0 = -1; exit (bpf(2), BPF_PROG_LOAD)."""
    numbers = {"x86_64": 321, "aarch64": 280}
    if platform.machine() not in numbers:
        pytest.skip(f"the number of bpf(2) on {platform.machine()} is not known here")
    program = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence)
    ).ljust(72, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(numbers[platform.machine()], 5, attributes, len(attributes))
    if fd < 0:
        pytest.skip(f"no eBPF here: {os.strerror(ctypes.get_errno())}")
    try:
        sock.setsockopt(_SOL, 50, fd)  # SO_ATTACH_BPF
    finally:
        os.close(fd)


def test_an_owner_that_is_gone(pair: tuple[Host, Host]) -> None:
    """It signals nobody then, as at the source."""
    with connected(*pair, 4) as held:
        give(held.server, "F_SETFL")
        image = dump(held.server)
        abandon(held.server)
        gone = struct.pack("=ii", 1, 1 << 22)  # beyond kernel.pid_max
        image.options = [
            (level, number, gone if value == OWNER else value)
            for level, number, value in image.options
        ]
        held.server = pair[0].run(restore, image)
        release(held.server, image)
        assert (FCNTL, uapi.F_SETOWN_EX, gone) not in dump(held.server).options


def test_nothing_is_missing_of_what_can_be_set(pair: tuple[Host, Host]) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = [
            (*key(name), CASES[name].value)
            for name in of_family(family, LISTENING)
            if name != "SO_RESERVE_MEM"  # needs memory cgroups
        ]
        assert pair[0].run(missing, wanted, family) == []


_LACKING = [
    ("TCP_CONGESTION", b"nosuch".ljust(16, b"\0"), "there is no congestion control 'nosuch'"),
    ("SO_BINDTODEVICE", b"nosuch0\0", "there is no device 'nosuch0'"),
    ("IP_MTU_DISCOVER", 77, os.strerror(errno.EINVAL)),
]


@pytest.mark.parametrize(("name", "value", "reason"), _LACKING, ids=lambda one: str(one)[:20])
def test_what_the_destination_lacks(
    pair: tuple[Host, Host], name: str, value: options.OptionValue, reason: str
) -> None:
    keepalive = (*key("SO_KEEPALIVE"), 1)
    wanted = [keepalive, (*key(name), value)]
    found = pair[0].run(missing, wanted, socket.AF_INET)
    assert found == [Missing(*key(name), value, reason)]
    assert found[0].name == name
    sieve = Sieve()
    for _ in range(2):
        assert pair[0].run(sieve.possible, wanted, socket.AF_INET) == [keepalive]


def test_timestamps_that_only_a_connection_takes(pair: tuple[Host, Host]) -> None:
    """SOF_TIMESTAMPING_OPT_ID is refused to a fresh socket everywhere: it is not missing."""
    flags = uapi.SOF_TIMESTAMPING_OPT_ID | 0x18
    value = struct.pack("=ii", flags, 0)
    row = (*key("SO_TIMESTAMPING"), value)
    assert pair[0].run(missing, [row], socket.AF_INET) == []
    with connected(*pair, 4) as held:
        held.server.setsockopt(_SOL, uapi.SO_TIMESTAMPING, value)
        image = dump(held.server)
        assert row in image.options
        abandon(held.server)
        held.server = pair[0].run(restore, image)
        release(held.server, image)
        assert held.server.getsockopt(_SOL, uapi.SO_TIMESTAMPING, 8) == value


def test_the_ecn_bits_are_the_kernels(pair: tuple[Host, Host]) -> None:
    """A connection that negotiated ECN has them in IP_TOS, where no program can set them."""
    server, client = pair
    client.sysctl("net/ipv4/tcp_ecn", 1)
    with connected(server, client, 4) as held:
        held.server.send(b"with ECT(0)")
        assert held.server.getsockopt(_IP, uapi.IP_TOS) == 2
        assert key("IP_TOS") not in {one[:2] for one in dump(held.server).options}
