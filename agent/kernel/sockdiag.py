"""What sock_diag(7) tells of the sockets of this network namespace: TCP and unix.

Asked over a plain AF_NETLINK socket, as only a few fields of very many sockets are wanted.
Structures: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/unix_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from agent.kernel import uapi

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_INFO = 2
INET_DIAG_MD5SIG = 18  # 4.14, commit c03fa9bcacd9; with INET_DIAG_INFO, to CAP_NET_ADMIN only
UDIAG_SHOW_NAME = 1
UDIAG_SHOW_PEER = 4
UNIX_DIAG_NAME = 0
UNIX_DIAG_PEER = 2

_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
# struct inet_diag_req_v2: family, protocol, idiag_ext, states, then struct inet_diag_sockid
_INET_REQUEST = struct.Struct("=BBBxI48s")
# struct inet_diag_msg, what is wanted of it: family, state, source port, source, inode
_INET = struct.Struct("=BBxxHxx16s44xI")
# The whole of it: family, state, ports, addresses, timer, receive and send queue, inode
_INET_WHOLE = struct.Struct("=BBxxHH16s16s12xIIIxxxxI")
# struct unix_diag_req
_UNIX_REQUEST = struct.Struct("=BBxxIIIII")
# struct unix_diag_msg: family, type, state, inode, cookie
_UNIX = struct.Struct("=BBBxI8x")

_INT = struct.Struct("=i")
_INODE = struct.Struct("=I")

_ALL_STATES = 0xFFFFFFFF
_BUFFER = 1 << 18


class InetSocket(NamedTuple):
    family: int  # AF_INET or AF_INET6
    state: int
    local: bytes  # 4 or 16 bytes
    local_port: int
    inode: int  # 0 when no process has it (TIME_WAIT, waiting to be accepted ...)
    md5: bool  # has TCP MD5 keys


class UnixSocket(NamedTuple):
    type: int
    state: int  # TCP_ESTABLISHED, TCP_LISTEN, TCP_CLOSE
    peer: int  # inode of the other end, 0 without
    name: str  # "@" stands for a zero byte; "" without


def tcp(family: int) -> Iterator[InetSocket]:
    """All TCP sockets of one address family. Raises `OSError`."""
    extension = 1 << (INET_DIAG_INFO - 1)
    request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, extension, _ALL_STATES, bytes(48))
    size = 4 if family == socket.AF_INET else 16
    for data, start, end in _dump(request):
        _, state, port, source, inode = _INET.unpack_from(data, start)
        md5 = any(
            kind == INET_DIAG_MD5SIG for kind, _, _ in _attributes(data, start + _INET.size, end)
        )
        yield InetSocket(family, state, source[:size], socket.ntohs(port), inode, md5)


class Ends(NamedTuple):
    """A connection by its two ends."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    inode: int  # 0 when no process has it
    expires: int  # milliseconds until its timer runs out


def orphans(family: int) -> Iterator[Ends]:
    """Connections that their process has closed, and whose FIN, or data before it, the peer has
    not acknowledged. Raises `OSError`."""
    states = 1 << uapi.TCP_FIN_WAIT1 | 1 << uapi.TCP_CLOSING | 1 << uapi.TCP_LAST_ACK
    return (one for one in _ends(family, states) if not one.inode)


def connecting(family: int) -> Iterator[Ends]:
    """Connections whose peer has not answered yet. Raises `OSError`."""
    return _ends(family, 1 << uapi.TCP_SYN_SENT)


def time_waits(family: int) -> Iterator[Ends]:
    """Connections in TIME_WAIT. Raises `OSError`."""
    return _ends(family, 1 << uapi.TCP_TIME_WAIT)


def _ends(family: int, states: int) -> Iterator[Ends]:
    request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, states, bytes(48))
    size = 4 if family == socket.AF_INET else 16
    for data, start, _ in _dump(request):
        fields = _INET_WHOLE.unpack_from(data, start)
        _, _, port, peer_port, source, peer, expires, _, _, inode = fields
        yield Ends(
            socket.inet_ntop(family, source[:size]),
            socket.ntohs(port),
            socket.inet_ntop(family, peer[:size]),
            socket.ntohs(peer_port),
            inode,
            expires,
        )


def unix() -> dict[int, UnixSocket]:
    """Inode -> each unix socket. Raises `OSError`."""
    show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, _ALL_STATES, 0, show, 0, 0)
    found = {}
    for data, start, end in _dump(request):
        _, kind, state, inode = _UNIX.unpack_from(data, start)
        peer, name = 0, ""
        for attribute, first, last in _attributes(data, start + _UNIX.size, end):
            if attribute == UNIX_DIAG_PEER:
                (peer,) = _INODE.unpack_from(data, first)
            elif attribute == UNIX_DIAG_NAME:
                name = os.fsdecode(data[first:last].rstrip(b"\0").replace(b"\0", b"@"))
        found[inode] = UnixSocket(kind, state, peer, name)
    return found


def _dump(request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The (buffer, start, end) of the payload of each answer."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _BUFFER)
        size = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(size, SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
        while True:
            data = netlink.recv(_BUFFER)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                start = offset + _HEADER.size
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    (code,) = _INT.unpack_from(data, start)
                    if code < 0:
                        raise OSError(-code, f"sock_diag: {os.strerror(-code)}")
                    return
                yield data, start, offset + length
                offset += (length + 3) & ~3


def _attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of each attribute's value."""
    while offset + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, offset + _ATTRIBUTE.size, offset + length
        offset += (length + 3) & ~3
