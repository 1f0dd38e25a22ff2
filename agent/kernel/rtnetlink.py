"""Ask rtnetlink(7) without an event loop: plain requests, each answered before send() returns.

pyroute2 builds and reads the messages. Its own client is not used, because that runs an event
loop, which cannot be done inside ours, and its versions differ in it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

# include/uapi/linux/netlink.h
_NLM_F_REQUEST: Final = 1
_NLM_F_ACK: Final = 4
_NLM_F_EXCL: Final = 0x200
_NLM_F_DUMP: Final = 0x300
_NLM_F_CREATE: Final = 0x400
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
# include/uapi/linux/rtnetlink.h
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_GETROUTE: Final = 26
RTN_UNICAST: Final = 1
RTN_LOCAL: Final = 2

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ERRNO = struct.Struct("=i")
_RTM_TYPE_OFFSET = _HEADER.size + 7  # of rtm_type in struct rtmsg
_TIMEOUT = struct.pack("@ll", 2, 0)  # struct timeval


class Netlink:
    """A socket to rtnetlink. Failures are `OSError`, with the kernel's errno."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def request(self, message: bytes) -> None:
        """Send a message that asks for an acknowledgement, and take that."""
        self._socket.send(message)
        for _ in self._answer():
            pass

    def addresses(self) -> list[Any]:
        """An `ifaddrmsg` for each address of this host."""
        self._socket.send(_encoded(ifaddrmsg(), _RTM_GETADDR, _NLM_F_DUMP))
        found: list[Any] = []
        while True:
            for kind, data in self._answer():
                if kind == _NLMSG_DONE:
                    return found
                found.append(_decoded(ifaddrmsg, data))

    def route(self, query: bytes) -> Any:
        """The `rtmsg` that answers a `route_query`: where packets to an address go from here."""
        return _decoded(rtmsg, self._route(query))

    def is_local(self, query: bytes) -> bool:
        """Whether packets for the address of a `route_query` are delivered on this host."""
        try:
            return self._route(query)[_RTM_TYPE_OFFSET] == RTN_LOCAL
        except OSError:
            return False

    def _route(self, query: bytes) -> bytes:
        self._socket.send(query)
        return [data for _, data in self._answer()][0]

    def _answer(self) -> Iterator[tuple[int, bytes]]:
        data = self._socket.recv(1 << 17)
        at = 0
        while at < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_ERROR:
                (code,) = _ERRNO.unpack_from(data, at + _HEADER.size)
                if code:
                    raise OSError(-code, os.strerror(-code))
            yield kind, data[at : at + length]
            at += (length + 3) & ~3


def new_address(**fields: Any) -> bytes:
    """A request to add an address, from the fields of an `ifaddrmsg`."""
    flags = _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
    return _encoded(ifaddrmsg(), _RTM_NEWADDR, flags, **fields)


def delete_address(**fields: Any) -> bytes:
    """A request to remove an address, from the fields of an `ifaddrmsg`."""
    return _encoded(ifaddrmsg(), _RTM_DELADDR, _NLM_F_ACK, **fields)


def route_query(address: str) -> bytes:
    """What to ask `Netlink.route` and `Netlink.is_local` with."""
    parsed = ipaddress.ip_address(address)
    return _encoded(
        rtmsg(),
        _RTM_GETROUTE,
        0,
        family=int(socket.AF_INET if parsed.version == 4 else socket.AF_INET6),
        dst_len=parsed.max_prefixlen,
        attrs=[("RTA_DST", str(parsed))],
    )


def _encoded(message: Any, kind: int, flags: int, **fields: Any) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["header"]["type"] = kind
    message["header"]["flags"] = _NLM_F_REQUEST | flags
    message.encode()
    return bytes(message.data)


def _decoded(cls: Any, data: bytes) -> Any:
    message = cls(data)
    message.decode()
    return message
