"""TCP sockets between hosts of `tests.support.netns`, and a look at what is on their wire."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.netlock.render import Connection
from agent.tcp import Stream, abandon, disconnect, dump, release, restore
from agent.tcp.replay import Segment, parse
from tests.support.netns import Host, wait_until

KINDS = ("ipv4", "ipv6", "mapped", "link-local")
AF = {4: socket.AF_INET, 6: socket.AF_INET6}

_SND_WND_OFFSET = 228  # tcpi_snd_wnd, include/uapi/linux/tcp.h (since 5.4)
_ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h


@dataclass(slots=True)
class Pair:
    """A connection between two hosts; `server` is the accepted end."""

    server: socket.socket
    client: socket.socket

    def connection(self) -> Connection:
        """As the server's host sees it."""
        local, remote = self.server.getsockname(), self.server.getpeername()
        family = 4 if self.server.family == socket.AF_INET else 6
        return Connection(family, local[0], local[1], remote[0], remote[1])

    def close(self) -> None:
        self.server.close()
        self.client.close()


def listen(host: Host, address: str, port: int = 0) -> socket.socket:
    family = AF[6 if ":" in address else 4]
    sock = host.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(64)
    sock.settimeout(10)
    return sock


def connect(client: Host, listener: socket.socket) -> Pair:
    sock = client.socket(listener.family, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(listener.getsockname()[:2])
    served, _ = listener.accept()
    served.settimeout(10)
    return Pair(served, sock)


@contextlib.contextmanager
def connected(server: Host, client: Host, kind: int | str, port: int = 0) -> Iterator[Pair]:
    """A connection to the server's own address of a family, or of one of `KINDS`; its listener is
    closed again."""
    with listen_as(server, kind if isinstance(kind, str) else f"ipv{kind}", port) as listener:
        pair = connect_as(client, listener)
    try:
        yield pair
    finally:
        pair.close()


def listen_as(server: Host, kind: str, port: int = 0) -> socket.socket:
    """A listener at the server's own address of one of `KINDS`."""
    if kind == "mapped":
        return listen(server, f"::ffff:{server.address4}", port)
    if kind != "link-local":
        return listen(server, server.address(int(kind[3:])), port)
    sock = server.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((server.link_local(), port, 0, server.run(socket.if_nametoindex, "eth0")))
    sock.listen(64)
    sock.settimeout(10)
    return sock


def connect_as(client: Host, listener: socket.socket) -> Pair:
    """A connection to it over IPv4 where it listens to a mapped address."""
    family, address = _way_to(client, listener)
    if family == socket.AF_INET6 and address[0].startswith("::ffff:"):
        family, address = socket.AF_INET, (address[0].removeprefix("::ffff:"), address[1])
    sock = client.socket(family, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(address)
    served, _ = listener.accept()
    served.settimeout(10)
    return Pair(served, sock)


def begin_connect_as(client: Host, listener: socket.socket) -> socket.socket:
    """A socket of the listener's family that has sent it its SYN."""
    family, address = _way_to(client, listener)
    sock = client.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    return sock


def _way_to(client: Host, listener: socket.socket) -> tuple[int, tuple[Any, ...]]:
    """The family and the address, with a scope where it needs one."""
    host, port = listener.getsockname()[:2]
    host = host.partition("%")[0]
    if not host.startswith("fe80:"):
        return listener.family, (host, port)
    client.link_local()
    return listener.family, (host, port, 0, client.run(socket.if_nametoindex, "eth0"))


def begin_connect(client: Host, address: str, port: int) -> socket.socket:
    """A socket that has sent its SYN."""
    sock = client.socket(AF[6 if ":" in address else 4], socket.SOCK_STREAM)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((address, port))
    return sock


def state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 1)[0]


def retransmits(sock: socket.socket) -> int:
    """tcpi_retransmits: how often the timer has run out for what is in flight."""
    return sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 3)[2]


def window_is_shut(sock: socket.socket) -> bool:
    """All that was sent is acknowledged, and the peer has no room for another segment."""
    queued = ioctl_int(sock.fileno(), uapi.SIOCOUTQ)
    if not 0 < queued == ioctl_int(sock.fileno(), uapi.SIOCOUTQNSD):
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 256)
    (window,) = struct.unpack_from("=I", info, _SND_WND_OFFSET)
    return int(window) < sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_MAXSEG)


def await_established(sock: socket.socket) -> None:
    wait_until("connected", lambda: state(sock) == uapi.TCP_ESTABLISHED)


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"ended after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def echo_works(pair: Pair) -> None:
    """Assert that bytes go both ways."""
    for sender, receiver in ((pair.client, pair.server), (pair.server, pair.client)):
        sender.sendall(b"ping")
        assert read_exactly(receiver, 4) == b"ping"


@contextlib.contextmanager
def deaf(host: Host) -> Iterator[None]:
    """No TCP segment reaches the host."""
    host.command("nft", "add table ip deaf; add table ip6 deaf6")
    for family, table in (("ip", "deaf"), ("ip6", "deaf6")):
        hook = "{ type filter hook prerouting priority -300; }"
        host.command("nft", f"add chain {family} {table} in {hook}")
        host.command("nft", f"add rule {family} {table} in meta l4proto tcp drop")
    try:
        yield
    finally:
        host.command("nft", "delete table ip deaf; delete table ip6 deaf6")


class Sniffer:
    """All TCP segments that pass a host's eth0, in and out."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, uapi.SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind(("eth0", _ETH_P_ALL))

    def segments(self, *, outgoing: bool) -> list[Segment]:
        """Those of one direction since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
                segment = parse(packet)
                if segment is not None and (kind == _PACKET_OUTGOING) == outgoing:
                    found.append(segment)
        return found

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def sniffing(host: Host) -> Iterator[Sniffer]:
    sniffer = Sniffer(host)
    try:
        yield sniffer
    finally:
        sniffer.close()


def ports(segment: Segment) -> tuple[int, int]:
    """(source, destination)"""
    source, destination = struct.unpack("!HH", segment.tcp[:4])
    return source, destination


def moved(host: Host, held: Pair, place: str) -> Stream:
    """Move the server's end as bytes: "in place" onto the same socket, else onto a fresh one."""
    stream = Stream.from_bytes(dump(held.server).to_bytes())
    if place == "in place":
        disconnect(held.server)
        host.run(restore, stream, held.server)
    else:
        abandon(held.server)
        held.server = host.run(restore, stream)
    host.run(release, held.server)
    return stream
