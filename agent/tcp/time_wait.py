"""Connections in TIME_WAIT: the destination answers a late FIN as the source would have.

No process has them, and nothing shows their sequence numbers. But TIME_WAIT acknowledges every
segment (tcp_timewait_state_process()): one is injected as if from the peer, and the answer, which
has all, is taken from the network lock's log and never sent. At the destination a connection is
restored and closed on both sides without a word, which leaves the kernel's own TIME_WAIT.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection
from typing import NamedTuple

from agent.errors import ProtocolError, shown
from agent.kernel import sockdiag, uapi
from agent.kernel.nflog import PacketLog
from agent.kernel.syscalls import readable
from agent.netlock.render import Connection
from agent.tcp.opening import option_offset
from agent.tcp.replay import parse
from agent.tcp.restoring import new_socket, restore
from agent.tcp.segment import ACK, FIN, Inject, segment
from agent.tcp.stream import Stream

LOG_GROUP = 0x5F17
MAX_TIME_WAITS = 1024  # each takes a descriptor and 0.1 ms at the destination
_PATIENCE = 0.05  # seconds for the answers, which come at once
_MAPPED = "::ffff:"
_TCP = socket.IPPROTO_TCP
_MASK = 0xFFFFFFFF
_SEQUENCES = struct.Struct("!II")
_CLOCKS = struct.Struct("!II")
_WINDOW = 0xFFFF
_BUFFER = 1 << 17


class TimeWait(NamedTuple):
    """A connection in TIME_WAIT. On the wire: a list."""

    family: int  # 4 or 6, of its packets
    local: str
    local_port: int
    remote: str
    remote_port: int
    send_next: int  # sequence numbers behind both FINs
    receive_next: int
    clock: int  # our timestamp
    peer_clock: int  # the peer's last one; 0 without timestamps (RFC 7323)


def connections(addresses: Collection[str]) -> list[Connection]:
    """Those in TIME_WAIT on local `addresses`, of which the latest `MAX_TIME_WAITS`.

    The older one is, the less a FIN is still to be expected. Raises `OSError`.
    """
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for one in sockdiag.time_waits(family):
            local, remote = one.local.removeprefix(_MAPPED), one.remote.removeprefix(_MAPPED)
            if local in addresses:
                number = 6 if ":" in local else 4
                ends = Connection(number, local, one.local_port, remote, one.remote_port)
                found.append((one.expires, ends))
    return [ends for _, ends in sorted(found, reverse=True)[:MAX_TIME_WAITS]]


def ask(wanted: Collection[Connection], log: PacketLog, inject: Inject) -> list[TimeWait]:
    """What each of `wanted` would answer, as far as it does.

    The lock must log and drop what they send (`render.time_waits`). One that has answered a
    segment in the last half second stays silent (tcp_invalid_ratelimit). Raises `OSError`.
    """
    asked = {_key(one): one for one in wanted}
    inject([segment(_stream(one.family, *one.astuple()[1:]), 0) for one in wanted])
    found: dict[tuple[bytes, bytes, bytes], TimeWait] = {}
    deadline = time.monotonic() + _PATIENCE
    while len(found) < len(asked) and (rest := deadline - time.monotonic()) > 0:
        readable(log.fileno(), rest)
        for packet in log.packets():
            answer = parse(packet)
            if answer is None:
                continue
            key = (answer.source, answer.destination, answer.tcp[:4])
            if key in asked:
                found[key] = _time_wait(asked[key], answer.tcp)
    return list(found.values())


def _key(one: Connection) -> tuple[bytes, bytes, bytes]:
    family = socket.AF_INET if one.family == 4 else socket.AF_INET6
    ports = struct.pack("!HH", one.local_port, one.remote_port)
    return socket.inet_pton(family, one.local), socket.inet_pton(family, one.remote), ports


def _time_wait(one: Connection, header: bytes) -> TimeWait:
    send_next, receive_next = _SEQUENCES.unpack_from(header, 4)
    clock = peer_clock = 0
    if (at := option_offset(header, uapi.TCPOPT_TIMESTAMP)) is not None:
        clock, peer_clock = _CLOCKS.unpack_from(header, at + 2)
    return TimeWait(*one.astuple(), send_next, receive_next, clock, peer_clock)


def from_rows(rows: object) -> list[TimeWait]:
    """Those of a record. Raises `ProtocolError`."""
    if not isinstance(rows, list) or len(rows) > MAX_TIME_WAITS:
        raise ProtocolError(detail="a record of connections in TIME_WAIT without them")
    found = []
    for row in rows:
        match row:
            case [int(), str(), int(), str(), int(), int(), int(), int(), int()] if (
                row[0] in (4, 6) and row[2] and row[4]
            ):
                one = TimeWait(*row)
            case _:
                raise ProtocolError(detail=f"a connection in TIME_WAIT is {shown(row)}")
        _stream_of(one)  # raises
        found.append(one)
    return found


def prepare(one: TimeWait) -> socket.socket:
    """A socket for `finish`, silent and in repair mode. Made before a listener of its port is.

    Raises `StreamError`.
    """
    stream = _stream_of(one)
    return restore(stream, new_socket(stream.family))


def finish(sock: socket.socket, one: TimeWait, inject: Inject) -> None:
    """Close it on both sides, which leaves TIME_WAIT. The lock must drop what it sends.

    Its local address is here. Raises `OSError`.
    """
    stream = _stream_of(one)
    clocks = b""
    if one.peer_clock:
        clocks = b"\1\1\x08\x0a" + _CLOCKS.pack(one.peer_clock, stream.clock)
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    sock.shutdown(socket.SHUT_WR)  # taken for sent
    answer = segment(stream, FIN | ACK, acknowledged=one.send_next, options=clocks)
    inject([answer])
    sock.close()


def _stream_of(one: TimeWait) -> Stream:
    """The connection before the FINs."""
    stream = _stream(*one[:5])
    stream.send_seq = (one.send_next - 1) & _MASK
    stream.receive_seq = (one.receive_next - 1) & _MASK
    stream.window = (stream.receive_seq, _WINDOW, _WINDOW, _WINDOW, stream.receive_seq)
    if one.peer_clock:
        stream.negotiated = uapi.TCPI_OPT_TIMESTAMPS
        stream.timestamp = one.clock
    if not (0 <= one.clock <= _MASK and 0 <= one.peer_clock <= _MASK):
        raise ProtocolError(detail=f"a connection in TIME_WAIT is {shown(list(one))}")
    return Stream.from_wire(stream.to_wire())


def _stream(family: int, local: str, port: int, remote: str, remote_port: int) -> Stream:
    return Stream(
        inode=0,
        family=int(socket.AF_INET if family == 4 else socket.AF_INET6),
        state=uapi.TCP_ESTABLISHED,
        local=(local, port),
        remote=(remote, remote_port),
        send_buffer=_BUFFER,
        receive_buffer=_BUFFER,
        window_clamp=_WINDOW,
        mss=536,
    )
