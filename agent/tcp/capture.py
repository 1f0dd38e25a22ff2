"""Keep what peers send while the lock drops it, so that it can be replayed.

Packet sockets see a packet before netfilter does. The packets rest in the kernel's receive buffer
until `drain`; nothing runs here in between. One socket for each family, bound to its protocol:
such a socket sees a packet once, where it leaves VLANs and bridges, and never an outgoing one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Collection, Sequence, Set
from typing import Final

from agent.kernel import uapi
from agent.netlock.render import LOCK_PASS_MARK, Connection, Listener

DEFAULT_BUFFER: Final = 64 << 20  # bytes

# include/uapi/linux/if_ether.h, if_packet.h, asm-generic/socket.h
_ETH_P = {4: 0x0800, 6: 0x86DD}
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_HOST = 0
_SO_ATTACH_FILTER = 26
_SOCKADDR_LL = struct.Struct("=HHiHBB8s")  # struct sockaddr_ll
_STATISTICS = struct.Struct("=II")  # struct tpacket_stats: tp_packets, tp_drops

# include/uapi/linux/filter.h, bpf_common.h
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS | size
_JEQ, _JSET, _JA, _RET = 0x15, 0x45, 0x05, 0x06
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_MARK = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_ALL = 0xFFFFFFFF
_NOTHING = 0

_LARGEST = 1 << 20  # bytes; more than GSO_MAX_SIZE, the largest that GRO makes (BIG TCP)
_IPV6_HEADER = 40
_JUMBO_HEADER = 8  # hop-by-hop header of IPv6 packets over 64 KiB
_TCP_MINIMUM = 20
_SYN, _SYN_MASK = 0x02, 0x17  # of FIN, SYN, RST and ACK, SYN only

_bind = ctypes.CDLL(None, use_errno=True).bind
_bind.restype = ctypes.c_int
_bind.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

Instruction = tuple[int, int, int, int]  # code, jt, jf, k
Endpoints = tuple[int, str, int, str, int]


class Capture:
    """Packets for the service's addresses, from the construction on.

    It needs not hold an address to see its packets: that they arrive with this host's own
    link-layer address is enough. Segments that we inject ourselves are not seen.
    """

    def __init__(self, addresses: Sequence[str], *, buffer: int = DEFAULT_BUFFER) -> None:
        """`buffer`: bytes of kernel memory for each family. Raises `OSError`."""
        self._sockets: list[socket.socket] = []
        self._dropped = 0
        self._room = memoryview(bytearray(_LARGEST))
        self._endpoints: dict[bytes, Endpoints] = {}
        try:
            for family in (4, 6):
                if mine := [one for one in addresses if (":" in one) == (family == 6)]:
                    self._sockets.append(_open(family, mine, buffer))
        except OSError:
            self.close()
            raise

    def drain(self, connections: Set[Connection], listeners: Collection[Listener]) -> list[bytes]:
        """The IP packets since the last call, of a connection or a SYN to a listener.

        Order is kept within a family. Others are forgotten. Packets that GRO has merged are larger
        than the MTU, and none needs to have a valid checksum. Does not wait.
        """
        wanted = {(one.family, one.address, one.port) for one in listeners}
        packets = []
        for sock in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    size = sock.recv_into(self._room)
                    if packet := self._chosen(self._room[:size], connections, wanted):
                        packets.append(packet)
        return packets

    def dropped(self) -> int:
        """How many packets had no room in the buffers so far."""
        for sock in self._sockets:
            data = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
            self._dropped += _STATISTICS.unpack(data)[1]  # reading starts it again at 0
        return self._dropped

    def close(self) -> None:
        """Stop. Idempotent. May take some milliseconds (the kernel waits for a grace period)."""
        for sock in self._sockets:
            sock.close()
        self._sockets = []

    def _chosen(
        self,
        packet: memoryview,
        connections: Set[Connection],
        listeners: set[tuple[int, str | None, int]],
    ) -> bytes | None:
        if packet[0] >> 4 == 4:
            tcp = (packet[0] & 15) * 4
            addresses = packet[12:20]
            length = packet[2] << 8 | packet[3]
        else:
            tcp = _IPV6_HEADER if packet[6] == socket.IPPROTO_TCP else _IPV6_HEADER + _JUMBO_HEADER
            addresses = packet[8:40]
            length = packet[4] << 8 | packet[5]
            length += _IPV6_HEADER if length else 0
        # 0: more than fits the field. Short packets are padded to the least size of a frame.
        length = length or len(packet)
        if not tcp + _TCP_MINIMUM <= length <= len(packet):
            return None
        key = bytes(addresses) + bytes(packet[tcp : tcp + 4])
        family, local, local_port, remote, remote_port = ends = self._endpoints.get(
            key
        ) or self._parsed(key)
        if packet[tcp + 13] & _SYN_MASK == _SYN and (
            (family, local, local_port) in listeners or (family, None, local_port) in listeners
        ):
            return bytes(packet[:length])
        return bytes(packet[:length]) if Connection(*ends) in connections else None

    def _parsed(self, key: bytes) -> Endpoints:
        half = (len(key) - 4) // 2
        family, kind = (4, socket.AF_INET) if half == 4 else (6, socket.AF_INET6)
        remote_port, local_port = struct.unpack("!HH", key[-4:])
        local, remote = (
            socket.inet_ntop(kind, part) for part in (key[half : 2 * half], key[:half])
        )
        self._endpoints[key] = found = (family, local, local_port, remote, remote_port)
        return found


def _open(family: int, addresses: Sequence[str], buffer: int) -> socket.socket:
    # With protocol 0 nothing arrives before bind(): the filter is there from the first packet on.
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_RCVBUFFORCE, buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        _attach(sock, filter_program(family, addresses))
        _bind_at_all_devices(sock, _ETH_P[family])
    except OSError:
        sock.close()
        raise
    return sock


def _bind_at_all_devices(sock: socket.socket, protocol: int) -> None:
    # socket.bind() wants the name of one device; interface index 0 stands for all (packet(7)).
    address = _SOCKADDR_LL.pack(socket.AF_PACKET, socket.htons(protocol), 0, 0, 0, 0, b"")
    if _bind(sock.fileno(), address, len(address)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bind: {os.strerror(number)}")


def _attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    code = b"".join(_INSTRUCTION.pack(*one) for one in program)
    memory = ctypes.create_string_buffer(code)
    # struct sock_fprog
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(memory)),
    )


def filter_program(family: int, addresses: Sequence[str]) -> list[Instruction]:
    """Classic BPF: TCP to this host and one of the addresses, whole, not injected by ourselves.

    Offsets count from the IP header, where the data of a SOCK_DGRAM packet socket starts.
    """
    program = [
        *_require(_LD_W, _PACKET_TYPE, _PACKET_HOST),
        (_LD_W, 0, 0, _MARK),
        (_JEQ, 0, 1, LOCK_PASS_MARK),
        (_RET, 0, 0, _NOTHING),
    ]
    if family == 4:
        program += _require(_LD_B, 9, socket.IPPROTO_TCP)
        program += [(_LD_H, 0, 0, 6), (_JSET, 0, 1, 0x3FFF), (_RET, 0, 0, _NOTHING)]  # fragments
        destination, kind = 16, socket.AF_INET
    else:
        # TCP at once, or after the hop-by-hop header of a jumbogram (RFC 2675).
        hop_by_hop = _require(_LD_B, _IPV6_HEADER, socket.IPPROTO_TCP)
        program += [(_LD_B, 0, 0, 6), (_JEQ, 2 + len(hop_by_hop), 0, socket.IPPROTO_TCP)]
        program += [(_JEQ, 1, 0, socket.IPPROTO_HOPOPTS), (_RET, 0, 0, _NOTHING), *hop_by_hop]
        destination, kind = 24, socket.AF_INET6
    for address in addresses:
        packed = socket.inet_pton(kind, address)
        words = struct.unpack(f"!{len(packed) // 4}I", packed)
        for number, word in enumerate(words):
            rest = 2 * (len(words) - number) - 1  # instructions to the next address
            program += [(_LD_W, 0, 0, destination + 4 * number), (_JEQ, 0, rest, word)]
        program.append((_RET, 0, 0, _ALL))
    program.append((_RET, 0, 0, _NOTHING))
    return program


def _require(load: int, offset: int, value: int) -> list[Instruction]:
    return [(load, 0, 0, offset), (_JEQ, 1, 0, value), (_RET, 0, 0, _NOTHING)]
