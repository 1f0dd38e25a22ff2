"""Give the peers' captured packets to this host's own TCP, as if they had just arrived.

Without it a peer whose packet was dropped in the blackout waits for its retransmission timer.
TCP takes duplicates in its stride, so replaying too much is harmless.

A raw socket sends the packet to a local address, so it loops back through `lo`. The route found
when it was sent stays with it, so it is delivered without the checks for martian sources and
without reverse path filtering (ip_rcv_finish_core() in net/ipv4/ip_input.c looks a route up only
for packets that have none).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agent.kernel import uapi
from agent.kernel.rtnetlink import Netlink, route_query
from agent.netlock.render import LOCK_PASS_MARK

# Payload bytes of one injected segment. With the headers and the kernel's own 0.3 KiB it fits an
# allocation of 4 KiB, so little of the receiver's buffer is charged for memory that is not used.
SEGMENT_PAYLOAD: Final = 3584

FIN, SYN, RST, PSH, ACK, CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x80  # RFC 9293, RFC 3168

_IPV4_HEADER, _IPV6_HEADER = 20, 40  # bytes, without options and extensions
_JUMBO_HEADER = 8  # hop-by-hop header of an IPv6 packet over 64 KiB (RFC 2675)
_TCP_MINIMUM = 20
_IPV6_HDRINCL = 36  # include/uapi/linux/in6.h
_SEND_BUFFER = 4 << 20  # bytes
_SEQUENCE = struct.Struct("!I")
_UINT16 = struct.Struct("!H")
_REFUSED = {errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOBUFS, errno.EINVAL}


@dataclass(slots=True)
class Segment:
    """A TCP segment and the IP header it came with."""

    ip: bytes  # the header alone, without IPv6 extensions
    tcp: bytes  # the header with its options
    payload: memoryview
    source: bytes  # packed
    destination: bytes  # packed

    @property
    def flags(self) -> int:
        return self.tcp[13]


def parse(packet: bytes) -> Segment | None:
    """The TCP segment in an IP packet, or None where there is no whole one."""
    if len(packet) < _IPV4_HEADER:
        return None
    if packet[0] >> 4 == 4:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        end = packet[2] << 8 | packet[3] or len(packet)  # 0: larger than the field can say
        source, destination = packet[12:16], packet[16:20]
        whole = not (packet[6] << 8 | packet[7]) & 0x3FFF  # no fragment
        ip = packet[:start]
    elif packet[0] >> 4 == 6 and len(packet) >= _IPV6_HEADER + _JUMBO_HEADER:
        start, protocol = _IPV6_HEADER, packet[6]
        if protocol == socket.IPPROTO_HOPOPTS and packet[_IPV6_HEADER + 1] == 0:
            start, protocol = start + _JUMBO_HEADER, packet[_IPV6_HEADER]
        end = packet[4] << 8 | packet[5]
        end = end + _IPV6_HEADER if end else len(packet)
        source, destination = packet[8:24], packet[24:40]
        whole = True
        ip = packet[:6] + bytes((protocol,)) + packet[7:_IPV6_HEADER]
    else:
        return None
    if protocol != socket.IPPROTO_TCP or not whole or start < _IPV4_HEADER:
        return None
    if not start + _TCP_MINIMUM <= end <= len(packet):
        return None
    data = start + (packet[start + 12] >> 4) * 4
    if not start + _TCP_MINIMUM <= data <= end:
        return None
    return Segment(ip, packet[start:data], memoryview(packet)[data:end], source, destination)


def packets_of(segment: Segment, limit: int = SEGMENT_PAYLOAD) -> Iterator[bytes]:
    """IP packets with valid checksums that carry a segment, `limit` bytes of payload in each.

    As a network card cuts a large segment: the sequence number goes on, FIN and PSH are on the
    last one only, CWR on the first only.
    """
    tcp = bytearray(segment.tcp)
    (sequence,) = _SEQUENCE.unpack_from(tcp, 4)
    flags, size = segment.flags, len(segment.payload)
    pseudo = segment.source + segment.destination
    for start in range(0, size or 1, limit):
        part = segment.payload[start : start + limit]
        first, last = start == 0, start + limit >= size
        _SEQUENCE.pack_into(tcp, 4, (sequence + start) & 0xFFFFFFFF)
        tcp[13] = flags & ~(0 if last else FIN | PSH) & ~(0 if first else CWR)
        tcp[16:18] = b"\0\0"
        length = len(tcp) + len(part)
        body = b"".join((tcp, part))
        total = checksum(b"".join((pseudo, _UINT16.pack(socket.IPPROTO_TCP), _UINT16.pack(length),
                                   body)))  # fmt: skip
        yield b"".join((_ip_header(segment.ip, length), body[:16], total, body[18:]))


def checksum(data: bytes) -> bytes:
    """The internet checksum (RFC 1071) in network order."""
    # A ones' complement sum of 16-bit words is the number's remainder by 65535 (2**16 = 1).
    if len(data) % 2:
        data += b"\0"
    return _UINT16.pack(0xFFFF - int.from_bytes(data, "big") % 0xFFFF)


def _ip_header(template: bytes, length: int) -> bytes:
    """The header of the packet, for `length` bytes of TCP."""
    if template[0] >> 4 == 6:
        return template[:4] + _UINT16.pack(length) + template[6:]
    header = bytearray(template)
    _UINT16.pack_into(header, 2, len(header) + length)
    header[10:12] = b"\0\0"
    header[10:12] = checksum(bytes(header))
    return bytes(header)


class Replayer:
    """Raw sockets that inject into this host's TCP. Opened ahead."""

    def __init__(self) -> None:
        """Needs CAP_NET_RAW and CAP_NET_ADMIN. Raises `OSError`."""
        self._sockets: dict[int, socket.socket] = {}
        self._netlink = Netlink()
        try:
            self._sockets[4] = _raw_socket(socket.AF_INET, socket.IPPROTO_IP, socket.IP_HDRINCL)
            try:
                self._sockets[6] = _raw_socket(socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_HDRINCL)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # a host without IPv6
                    raise
        except OSError:
            self.close()
            raise

    def replay(self, packets: list[bytes]) -> int:
        """Inject what peers sent, in its order; returns how many packets went in whole.

        RSTs are left out: what they said may be about a socket of the past.
        """
        return self.inject(packets, resets=False)

    def inject(self, packets: list[bytes], *, resets: bool = True) -> int:
        """Inject packets in their order; returns how many of them went in whole.

        Left out are packets that are not for an address this host has now (nothing is ever sent
        on), and what the host's own firewall refuses.
        """
        local: dict[bytes, str | None] = {}
        injected = 0
        for packet in packets:
            segment = parse(packet)
            if segment is None or (segment.flags & RST and not resets):
                continue
            if segment.destination not in local:
                local[segment.destination] = self._local_name(segment.destination)
            if (name := local[segment.destination]) is None:
                continue
            sock = self._sockets.get(segment.ip[0] >> 4)
            if sock is not None and _send(sock, segment, name):
                injected += 1
        return injected

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        for sock in self._sockets.values():
            sock.close()
        self._netlink.close()

    def _local_name(self, destination: bytes) -> str | None:
        family = socket.AF_INET if len(destination) == 4 else socket.AF_INET6
        name = socket.inet_ntop(family, destination)
        return name if self._netlink.is_local(route_query(name)) else None


def _raw_socket(family: int, level: int, header_included: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    try:
        sock.setsockopt(level, header_included, 1)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_MARK, LOCK_PASS_MARK)
        sock.setsockopt(socket.SOL_SOCKET, uapi.SO_SNDBUFFORCE, _SEND_BUFFER)
    except OSError:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, segment: Segment, destination: str) -> bool:
    try:
        for packet in packets_of(segment):
            sock.sendto(packet, (destination, 0))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True
