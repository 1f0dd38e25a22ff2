"""Hosts whose wire is in the hands of the test: what they send is read here, packet by packet, and
they receive what is written here.

The device `eth0` of such a host is a TUN. The kernel handles a packet that is written to it before
write() returns, so apart from its timers nothing happens at a time of its own choosing: a test
decides which packet is lost, late or doubled, and sees every one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.support.netns import Host

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # RFC 9293, section 3.1
MTU = 1500

# include/uapi/linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_QUEUE = 10_000  # packets that the kernel keeps until they are read; no run has as many
_LARGEST = 1 << 16

_HEADER = struct.Struct("!HHIIBBHHH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_MASK = 0xFFFFFFFF
_OPT_END, _OPT_NOP, _OPT_MSS, _OPT_SCALE, _OPT_SACK_OK, _OPT_SACK, _OPT_TIMESTAMP = (
    0, 1, 2, 3, 4, 5, 8,
)  # fmt: skip


class TunHost(Host):
    """A host as of `netns.network`, with a TUN device for `eth0`."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, number)
        try:
            self.device = self.run(_open_tun)
            self.ip("link", "set", "eth0", "addrgenmode", "none", "txqueuelen", str(_QUEUE), "up")
            self.add_address(self.address4)
            self.add_address(self.address6)
        except BaseException:
            self.close()
            raise

    def sent(self) -> list[bytes]:
        """The IP packets that it has sent since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.read(self.device, _LARGEST))
        return found

    def receive(self, packet: bytes) -> None:
        """Deliver an IP packet to it."""
        os.write(self.device, packet)

    def close(self) -> None:
        if getattr(self, "device", -1) >= 0:
            os.close(self.device)
            self.device = -1
        super().close()


def _open_tun() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI)
    try:
        fcntl.ioctl(device, _TUNSETIFF, request)
    except OSError:
        os.close(device)
        raise
    return device


@contextlib.contextmanager
def tun_hosts(*names: str) -> Iterator[list[TunHost]]:
    """Hosts with 10.99.0.N/24 and fd99::N/64 each; no packet goes anywhere by itself."""
    with contextlib.ExitStack() as undo:
        hosts = []
        for number, name in enumerate(names, 1):
            hosts.append(TunHost(name, number))
            undo.callback(hosts[-1].close)
        yield hosts


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment in its IP packet; options are read where they are wanted."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    seq: int
    ack: int = 0
    flags: int = ACK
    window: int = 0xFFFF  # as on the wire, not scaled
    options: bytes = b""
    payload: bytes = b""
    urgent: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Packet | None:
        """The segment in an IP packet, or None where there is something else in it."""
        if data[0] >> 4 == 4:
            start, protocol, end = (data[0] & 15) * 4, data[9], data[2] << 8 | data[3]
            family, addresses = socket.AF_INET, (data[12:16], data[16:20])
        else:
            start, protocol, end = 40, data[6], 40 + (data[4] << 8 | data[5])
            family, addresses = socket.AF_INET6, (data[8:24], data[24:40])
        if protocol != socket.IPPROTO_TCP:
            return None
        source, destination = (socket.inet_ntop(family, one) for one in addresses)
        ports_to_window = _HEADER.unpack_from(data, start)
        source_port, destination_port, seq, ack, offset, flags, window, _, urgent = ports_to_window
        body = start + (offset >> 4) * 4
        return cls(
            source, destination, source_port, destination_port, seq, ack, flags, window,
            data[start + _HEADER.size : body], data[body:end], urgent,
        )  # fmt: skip

    def encode(self) -> bytes:
        """The IP packet, with checksums."""
        options = self.options + b"\x01" * (-len(self.options) % 4)
        size = _HEADER.size + len(options)
        head = _HEADER.pack(
            self.source_port, self.destination_port, self.seq & _MASK, self.ack & _MASK,
            size // 4 << 4, self.flags, self.window, 0, self.urgent,
        )  # fmt: skip
        body = head + options + self.payload
        family = socket.AF_INET6 if ":" in self.source else socket.AF_INET
        ends = [socket.inet_pton(family, one) for one in (self.source, self.destination)]
        pseudo = b"".join(ends) + struct.pack("!II", len(body), socket.IPPROTO_TCP)
        body = body[:16] + _checksum(pseudo + body) + body[18:]
        if family == socket.AF_INET6:
            return _IPV6.pack(6 << 28, len(body), socket.IPPROTO_TCP, 64, *ends) + body
        fields = (0x45, 0, 20 + len(body), 0, 0x4000, 64, socket.IPPROTO_TCP)
        header = _IPV4.pack(*fields, 0, *ends)
        return header[:10] + _checksum(header) + header[12:] + body

    def __str__(self) -> str:
        names = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (URG, "U"), (ACK, "."))
        flags = "".join(name for flag, name in names if self.flags & flag)
        text = f"{self.source_port}>{self.destination_port} [{flags}] seq {self.seq}"
        text += f"+{len(self.payload)} ack {self.ack} win {self.window}"
        if (stamps := self.timestamps) is not None:
            text += f" ts {stamps[0]} {stamps[1]}"
        return text + "".join(f" sack {start}-{end}" for start, end in self.sacked)

    # --- options

    def option(self, kind: int) -> bytes | None:
        """The body of an option, None where it is not there."""
        data = self.options
        while data and data[0] != _OPT_END:
            if data[0] == _OPT_NOP:
                data = data[1:]
                continue
            if data[0] == kind:
                return data[2 : data[1]]
            data = data[data[1] :]
        return None

    @property
    def timestamps(self) -> tuple[int, int] | None:
        """(TSval, TSecr), RFC 7323"""
        body = self.option(_OPT_TIMESTAMP)
        return None if body is None else (struct.unpack("!II", body))

    @property
    def sacked(self) -> list[tuple[int, int]]:
        body = self.option(_OPT_SACK) or b""
        return list(struct.iter_unpack("!II", body))

    @property
    def mss(self) -> int | None:
        body = self.option(_OPT_MSS)
        return None if body is None else int.from_bytes(body, "big")

    @property
    def scale(self) -> int | None:
        body = self.option(_OPT_SCALE)
        return None if body is None else body[0]

    @property
    def sack_allowed(self) -> bool:
        return self.option(_OPT_SACK_OK) is not None

    def with_options(
        self,
        *,
        timestamps: tuple[int, int] | None = None,
        sacked: Sequence[tuple[int, int]] = (),
        mss: int | None = None,
        scale: int | None = None,
        sack_allowed: bool = False,
    ) -> Packet:
        data = b""
        if mss is not None:
            data += struct.pack("!BBH", _OPT_MSS, 4, mss)
        if scale is not None:
            data += struct.pack("!BBB", _OPT_SCALE, 3, scale)
        if sack_allowed:
            data += struct.pack("!BB", _OPT_SACK_OK, 2)
        if timestamps is not None:
            data += struct.pack("!BBII", _OPT_TIMESTAMP, 10, *timestamps)
        if sacked:
            data += struct.pack("!BB", _OPT_SACK, 2 + 8 * len(sacked))
            data += b"".join(struct.pack("!II", *one) for one in sacked)
        return replace(self, options=data)


def _checksum(data: bytes) -> bytes:
    """RFC 1071"""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
