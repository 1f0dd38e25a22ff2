"""Segments as the peer of a stream would send them, to be injected into this host's own TCP."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from socket import IPPROTO_TCP

from agent.tcp.stream import Stream

Inject = Callable[[list[bytes]], int]  # agent.tcp.replay.Replayer.inject

FIN, RST, ACK, URG = 0x01, 0x04, 0x10, 0x20  # RFC 9293, section 3.1

_MAPPED = "::ffff:"
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_HEADER = struct.Struct("!HHIIBBHHH")
_MASK = 0xFFFFFFFF


def segment(
    stream: Stream,
    flags: int,
    data: bytes = b"",
    *,
    at: int | None = None,
    acknowledged: int | None = None,
    window: int | None = None,
    options: bytes = b"",
) -> bytes:
    """An IP packet as the peer would send it now: the window it had, no checksum.

    It acknowledges what the peer has acknowledged, or as much as is given. A `window` that is given
    is the field of the header.

    Its data is at offset `at` of the receive queue, by default behind it; with `URG` the urgent
    pointer says that the last of it is urgent. Without the timestamp option it is taken all the
    same, and no clock is disturbed by it.
    """
    remote_host, remote_port = stream.remote
    local, remote = (
        ipaddress.ip_address(host.removeprefix(_MAPPED)) for host in (stream.local[0], remote_host)
    )
    offset = len(stream.receive_queue) if at is None else at
    if window is None:
        window = min(stream.window[1] >> stream.send_scale, 0xFFFF) if stream.window else 0
    tcp = _HEADER.pack(
        remote_port,
        stream.local[1],
        (stream.receive_seq + offset) & _MASK,
        stream.send_seq if acknowledged is None else acknowledged,
        (_HEADER.size + len(options)) // 4 << 4,
        flags,
        window,
        0,
        len(data) if flags & URG else 0,
    )
    tcp += options
    length = len(tcp) + len(data)
    if local.version == 4:
        header = _IPV4.pack(
            0x45, 0, _IPV4.size + length, 0, 0x4000, 64, IPPROTO_TCP, 0,
            remote.packed, local.packed,
        )  # fmt: skip
    else:
        header = _IPV6.pack(6 << 28, length, IPPROTO_TCP, 64, remote.packed, local.packed)
    return header + tcp + data
