"""Sorts the sockets of a tree: TCP by state, what CRIU restores by itself, and what cannot move.

Each socket is looked at through a copy of its descriptor, kept for some microseconds, with
getsockopt(2) alone: nothing is set and nothing is read from it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Iterator

from agent.kernel import uapi
from agent.kernel.syscalls import has_ao, pidfd_getfd
from agent.probe.descriptors import Descriptor
from agent.probe.facts import BoundFacts, ConnectionFacts, ListenerFacts, OptionFacts
from agent.probe.obstacles import Obstacles
from agent.tcp import options
from agent.tcp.dumping import was_connected
from agent.tcp.opening import peer_name
from agent.tcp.option_readings import FilterStays
from agent.tcp.option_table import FCNTL

IPPROTO_SMC = 256  # include/uapi/linux/in.h
IPPROTO_SCTP = 132
IPPROTO_UDPLITE = 136
SO_ZEROCOPY = 60  # include/uapi/asm-generic/socket.h, 4.14

MAX_OPTIONS = 1000  # different ones, of all sockets

# include/linux/socket.h; not every build of Python knows these by name
_FAMILY_NAMES = {
    21: "RDS",
    29: "CAN",
    30: "TIPC",
    31: "Bluetooth",
    38: "kernel crypto (AF_ALG)",
    40: "virtual machine (AF_VSOCK)",
    43: "SMC",
    44: "XDP",
}
_DATAGRAMS = frozenset(
    {socket.IPPROTO_UDP, IPPROTO_UDPLITE, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6}
)

# struct tcp_info: tcpi_state; tcpi_unacked and tcpi_sacked, which for a listening socket are the
# accept queue's length and limit
_INFO = struct.Struct("=B23xII")


class Sockets:
    """The sockets of a tree, by kind."""

    def __init__(self, obstacles: Obstacles) -> None:
        self._obstacles = obstacles
        self.connections: list[ConnectionFacts] = []
        self.listeners: list[ListenerFacts] = []
        self.bound: list[BoundFacts] = []
        self.options: dict[OptionFacts, None] = {}  # each once, as they are found
        self.tcp: dict[int, Descriptor] = {}  # inode -> descriptor of those not closed
        self.unix: dict[int, Descriptor] = {}

    def scan(self, descriptors: dict[int, Descriptor], pidfds: dict[int, int]) -> None:
        """Sort the sockets (inode -> one descriptor). Raises `PermissionError`."""
        for inode, at in descriptors.items():
            with _copy(at, pidfds) as sock:
                if sock is None:
                    continue  # closed since
                try:
                    self._sort(inode, at, sock)
                except PermissionError:
                    raise
                except OSError as error:
                    self._refuse("socket", at, what=f"socket that cannot be read ({error})")

    def _refuse(self, code: str, at: Descriptor, **fields: str | int) -> None:
        self._obstacles.descriptor(code, at.pid, at.fd, **fields)

    def _sort(self, inode: int, at: Descriptor, sock: socket.socket) -> None:
        family, kind, protocol = sock.family, sock.type, sock.proto
        if family == socket.AF_UNIX:
            self.unix[inode] = at
        elif family == socket.AF_PACKET:
            self._refuse("packet-socket", at)
        elif family == socket.AF_NETLINK:
            self._netlink(at, sock)
        elif family not in (socket.AF_INET, socket.AF_INET6):
            name = _FAMILY_NAMES.get(family, f"family {int(family)}")
            self._refuse("socket", at, what=f"{name} socket")
        elif kind == socket.SOCK_RAW:
            self._refuse("raw-socket", at)
        elif protocol == uapi.IPPROTO_MPTCP:
            self._refuse("mptcp", at, name=_name(sock))
        elif kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP:
            self._tcp(inode, at, sock)
        elif kind == socket.SOCK_DGRAM and protocol in _DATAGRAMS:
            if protocol in (socket.IPPROTO_UDP, IPPROTO_UDPLITE):
                self._bound("udp", at, sock)
        else:
            names = {IPPROTO_SMC: "SMC", IPPROTO_SCTP: "SCTP", socket.IPPROTO_TCP: "odd TCP"}
            name = names.get(protocol, f"protocol {protocol}")
            self._refuse("socket", at, what=f"{name} socket")

    def _netlink(self, at: Descriptor, sock: socket.socket) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if poll.poll(0):
            self._refuse("socket", at, what="netlink socket with messages not read yet")

    def _tcp(self, inode: int, at: Descriptor, sock: socket.socket) -> None:
        info = sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 32)
        state, waiting, backlog = _INFO.unpack(info)
        if state == uapi.TCP_CLOSE:
            if not was_connected(sock):  # else it moves like one that is
                self._bound("tcp", at, sock)
            return
        self.tcp[inode] = at
        family, address, port = _endpoint(sock.getsockname())
        if state == uapi.TCP_LISTEN:
            listener = ListenerFacts(
                address=address,
                port=port,
                family=family,
                v6only=family == 6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, uapi.IPV6_V6ONLY)),
                waiting=waiting,
                backlog=backlog,
                pid=at.pid,
                fd=at.fd,
            )
            self.listeners.append(listener)
        else:
            remote, remote_port = "", 0
            with contextlib.suppress(OSError):  # no longer connected
                _, remote, remote_port = _endpoint(peer_name(sock))
            self.connections.append(
                ConnectionFacts(family, address, port, remote, remote_port, state)
            )
        self._options(at, sock)
        self._settings(at, sock, state)

    def _settings(self, at: Descriptor, sock: socket.socket, state: int) -> None:
        """The options that the destination will be asked for."""
        try:
            found = options.dump(sock, sock.family, state)
        except FilterStays as error:
            self._refuse("socket", at, what=error.message)
            return
        family = 4 if sock.family == socket.AF_INET else 6
        for level, number, value in found:
            if level != FCNTL and len(self.options) < MAX_OPTIONS:
                plain = (value, "") if isinstance(value, int) else (0, value.hex())
                self.options[OptionFacts(family, level, number, *plain)] = None

    def _options(self, at: Descriptor, sock: socket.socket) -> None:
        """What a connection has in the kernel beside TCP, and no one can carry over."""
        ulp = b""
        with contextlib.suppress(OSError):
            ulp = sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_ULP, 16).rstrip(b"\0")
        if ulp == b"tls":
            self._refuse("kernel-tls", at, name=_name(sock))
        elif ulp:
            what = f"TCP socket with the upper layer protocol {ulp.decode(errors='replace')}"
            self._refuse("socket", at, what=what)
        with contextlib.suppress(OSError):
            if sock.getsockopt(socket.SOL_SOCKET, SO_ZEROCOPY):
                self._refuse("zero-copy", at, name=_name(sock))
        if has_ao(sock.fileno()):
            self._refuse("tcp-ao", at, name=_name(sock))

    def _bound(self, protocol: str, at: Descriptor, sock: socket.socket) -> None:
        family, address, port = _endpoint(sock.getsockname())
        if port:
            self.bound.append(
                BoundFacts(
                    protocol=protocol,
                    address=address,
                    port=port,
                    family=family,
                    pid=at.pid,
                    fd=at.fd,
                )
            )


@contextlib.contextmanager
def _copy(at: Descriptor, pidfds: dict[int, int]) -> Iterator[socket.socket | None]:
    """A copy of the descriptor for a moment, None where it has been closed."""
    try:
        fd = pidfd_getfd(pidfds[at.pid], at.fd)
    except PermissionError:
        raise
    except (KeyError, OSError):
        yield None
        return
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # getsockname(2) is not for every family
        try:
            odd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        except OSError:
            os.close(fd)  # the number is another file's by now
            yield None
            return
        numbers = (uapi.SO_DOMAIN, socket.SO_TYPE, uapi.SO_PROTOCOL)
        try:
            family, kind, protocol = (odd.getsockopt(socket.SOL_SOCKET, one) for one in numbers)
        except OSError:
            odd.close()
            yield None
            return
        sock = socket.socket(family, kind, protocol, fileno=odd.detach())
    with sock:
        yield sock


def _endpoint(name: tuple[str, int]) -> tuple[int, str, int]:
    """(4 or 6, address, port) of a socket's name; mapped addresses as the IPv4 they are."""
    host, port = name[0].partition("%")[0], name[1]
    if ":" not in host:
        return 4, host, port
    address = ipaddress.IPv6Address(host)
    if address.ipv4_mapped is not None:
        return 4, str(address.ipv4_mapped), port
    return 6, str(address), port


def _name(sock: socket.socket) -> str:
    """ "10.0.0.1:80 - 10.0.0.2:5000", or the local half."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(_endpoint(sock.getsockname()))
        parts.append(_endpoint(sock.getpeername()))
    return " - ".join(
        f"[{host}]:{port}" if family == 6 else f"{host}:{port}" for family, host, port in parts
    )
