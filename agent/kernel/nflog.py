"""Read the packets that an nft rule logs to a group (linux/netfilter/nfnetlink_log.h).

Asked over a plain AF_NETLINK socket: only the packets themselves are wanted.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from agent.kernel import uapi
from agent.kernel.syscalls import readable

_NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h
_SUBSYSTEM = 4 << 8  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_CFG_CMD, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5  # enum nfulnl_attr_config
_BIND, _COPY_PACKET = 1, 2
_PAYLOAD = 9  # NFULA_PAYLOAD
_REQUEST, _ACK = 1, 4
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg: family, version, group
_ATTRIBUTE = struct.Struct("=HH")
_MODE = struct.Struct("!IBB")  # copy_range, copy_mode
_CODE = struct.Struct("=i")
_BUFFER = 1 << 17
_ROOM = 16 << 20


class PacketLog:
    """The packets of one group, of this thread's network namespace."""

    def __init__(self, group: int, snaplen: int = 128) -> None:
        """Needs CAP_NET_ADMIN. Raises `OSError`, EBUSY where the group is taken."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, uapi.SO_RCVBUFFORCE, _ROOM)
            self._configure(group, _CFG_CMD, bytes([_BIND]))
            self._configure(group, _CFG_MODE, _MODE.pack(snaplen, _COPY_PACKET, 0))
            self._configure(group, _CFG_THRESHOLD, struct.pack("!I", 1))
        except OSError:
            self.close()
            raise

    def _configure(self, group: int, kind: int, value: bytes) -> None:
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
        body = _GENERIC.pack(socket.AF_UNSPEC, 0, group) + attribute + bytes(-len(attribute) % 4)
        header = _HEADER.pack(_HEADER.size + len(body), _CONFIG, _REQUEST | _ACK, 1, 0)
        self._socket.send(header + body)
        if not readable(self._socket.fileno(), 1):
            raise OSError(errno.ETIMEDOUT, "nfnetlink_log does not answer")
        (code,) = _CODE.unpack_from(self._socket.recv(_BUFFER), _HEADER.size)
        if code:
            raise OSError(-code, f"nfnetlink_log: {os.strerror(-code)}")

    def fileno(self) -> int:
        return self._socket.fileno()

    def packets(self) -> Iterator[bytes]:
        """Those that have been logged by now."""
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost
                    raise
                continue
            yield from _payloads(data)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def _payloads(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if kind == _PACKET:
            at, end = offset + _HEADER.size + _GENERIC.size, offset + length
            while at + _ATTRIBUTE.size <= end:
                size, name = _ATTRIBUTE.unpack_from(data, at)
                if size < _ATTRIBUTE.size:
                    break
                if name & 0x3FFF == _PAYLOAD:
                    yield data[at + _ATTRIBUTE.size : at + size]
                at += (size + 3) & ~3
        offset += (length + 3) & ~3
