"""One TCP stream as plain data, and its wire form. No I/O.

As bytes it is `MAGIC`, one byte of version, and the msgpack array of its fields in their order.
Integrity and secrecy are for what carries it.
"""

from __future__ import annotations

import errno
import operator
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from agent.errors import AgentError, ProtocolError, shown
from agent.kernel import uapi
from agent.tcp import options
from agent.tcp.fins import FINS
from agent.tcp.options import OptionValue

ALONE = frozenset({uapi.TCP_LISTEN, uapi.TCP_CLOSE})  # states without another end
MOVABLE = frozenset({*FINS, uapi.TCP_SYN_SENT, uapi.TCP_CLOSE})
MAX_QUEUE = 1 << 30  # bytes; more than the kernel lets a socket hold
MAGIC = b"TCPS"
VERSION = 2  # with other fields it is another one, and so is IMAGE_VERSION
_MAX_NAME = 64  # bytes of an address as text

Address = tuple[str, int]


class StreamError(AgentError):
    """A socket that cannot be moved as it is, or an image that the kernel does not take."""

    code = "stream"
    template = "the TCP stream {stream} cannot be moved: {detail}"
    hint_template = "Let the connection settle or end, then run the migration again."


@dataclass(slots=True)
class Stream:
    """A TCP socket at the moment it was dumped.

    Sequence numbers are absolute (RFC 9293), queues are the bytes from the first one that the
    peer has not acknowledged (`send_queue`) or the process has not read (`receive_queue`).
    The last `unsent` bytes of `send_queue` have never been given to the network.
    """

    inode: int
    family: int  # AF_INET or AF_INET6
    state: int  # TCP_ESTABLISHED or TCP_LISTEN ...
    local: Address
    remote: Address  # ("", 0) of a listening or closed one
    scope: int = 0  # interface index of a link-local address
    send_seq: int = 0  # of the first byte of send_queue
    receive_seq: int = 0  # of the first byte of receive_queue
    send_queue: bytes = b""
    receive_queue: bytes = b""
    unsent: int = 0
    # The peer's MSS option (mss_clamp); before it is known the program's TCP_MAXSEG, 0 for none
    mss: int = 0
    negotiated: int = 0  # TCPI_OPT_* bits
    send_scale: int = 0  # shift counts, RFC 7323
    receive_scale: int = 0
    timestamp: int = 0  # what TSval would have been at the dump
    rtt: int = 0  # smoothed round-trip time in microseconds, 0 for none yet
    window: tuple[int, ...] = ()  # struct tcp_repair_window
    send_buffer: int = 0  # SO_SNDBUF as read (twice what was asked for)
    receive_buffer: int = 0
    buffer_locks: int = 0  # SO_BUF_LOCK
    backlog: int = 0  # of a listening socket
    nonblocking: int = 0  # O_NONBLOCK, a property of the open file description
    window_clamp: int = 0
    urgent: int = 0  # 1 + the offset of an unread urgent byte in receive_queue
    read_shut: int = 0  # the program called shutdown(SHUT_RD)
    error: int = 0  # the errno that a closed one still has to tell
    options: list[tuple[int, int, OptionValue]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{format_address(self.local)}-{format_address(self.remote)}"

    @property
    def has_peer(self) -> bool:
        """Whether there is another end: not of a listening or closed one."""
        return self.state not in ALONE

    @property
    def clock(self) -> int:
        """The timestamp to go on with, never before the last one that was sent.

        The lowest bit says whether the clock counts microseconds; where it counts milliseconds
        the kernel has cleared it, which took up to one away (do_tcp_getsockopt(), since 6.7).
        """
        return self.timestamp if self.timestamp & 1 else (self.timestamp + 2) & 0xFFFFFFFF

    def to_bytes(self) -> bytes:
        """`TCPS`, a byte of version, msgpack: some 300 bytes, and the queues."""
        body: bytes = msgpack.packb(self.to_wire(), use_bin_type=True)
        return b"%b%c%b" % (MAGIC, VERSION, body)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Stream:
        """The stream of `to_bytes()`. Raises `ProtocolError` on anything else.

        Sizes are limited before memory is taken.
        """
        start = len(MAGIC) + 1
        if len(data) < start or bytes(data[: len(MAGIC)]) != MAGIC:
            raise ProtocolError(detail=f"a stream that begins with {bytes(data[:8])!r}")
        if data[len(MAGIC)] != VERSION:
            raise ProtocolError(
                detail=f"a stream of version {data[len(MAGIC)]}, where {VERSION} can be read"
            )
        try:
            wire = msgpack.unpackb(
                memoryview(data)[start:],
                raw=False,
                max_array_len=_MAX_OPTIONS,
                max_bin_len=MAX_QUEUE,
                max_str_len=_MAX_NAME,
                max_map_len=0,
                max_ext_len=0,
            )
        except (ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(detail=f"a stream that is not msgpack: {error}") from error
        return cls.from_wire(wire)

    def to_wire(self) -> list[Any]:
        return list(_values(self))

    @classmethod
    def from_wire(cls, wire: object) -> Stream:
        """Raises `ProtocolError` unless every field is of its type, within bounds, and they agree.

        What passes can be given to the kernel; whether it accepts it is for the kernel to say.
        """
        if not isinstance(wire, list) or len(wire) != len(_FIELDS):
            raise ProtocolError(detail="a stream with a wrong number of fields")
        for (name, limit, valid), value in zip(_RULES, wire, strict=True):
            if type(value) is int and 0 <= value < limit:
                continue  # most of them: no call, as there are thousands of streams
            if not valid(value):
                raise ProtocolError(detail=f"a stream whose {name} is {shown(value)}")
        stream = cls(*wire)
        stream.local = (wire[3][0], wire[3][1])
        stream.remote = (wire[4][0], wire[4][1])
        if (detail := _contradiction(stream)) is not None:
            raise ProtocolError(detail=f"a stream whose {detail}")
        return stream


_FIELDS = tuple(Stream.__dataclass_fields__)
_values = operator.attrgetter(*_FIELDS)
_SEQUENCE = (list, tuple)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STATES = MOVABLE | ALONE
_ERRORS = {0, errno.ECONNRESET}
_MAX_OPTIONS = 128
_INT = 1 << 31  # setsockopt(2) takes no more
_LIMITS = {  # of an integer, exclusive
    "inode": 1 << 64,
    "scope": 1 << 32,
    "send_seq": 1 << 32,
    "receive_seq": 1 << 32,
    "unsent": MAX_QUEUE + 1,
    "mss": 1 << 16,
    "negotiated": 1 << 8,
    "send_scale": 15,  # RFC 7323, section 2.3
    "receive_scale": 15,
    "timestamp": 1 << 32,
    "rtt": 1 << 32,
    "send_buffer": _INT,
    "receive_buffer": _INT,
    "buffer_locks": 4,
    "backlog": _INT,
    "nonblocking": 2,
    "window_clamp": _INT,
    "urgent": MAX_QUEUE + 1,
    "read_shut": 2,
}


def _is_int(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _family(value: object) -> bool:
    return _is_int(value, 1 << 16) and value in _FAMILIES


def _state(value: object) -> bool:
    return _is_int(value, 1 << 8) and value in _STATES


def _error(value: object) -> bool:
    return _is_int(value, 1 << 8) and value in _ERRORS


def _end(value: object) -> bool:
    return (
        isinstance(value, _SEQUENCE)
        and len(value) == 2
        and isinstance(value[0], str)
        and _is_int(value[1], 1 << 16)
    )


def _queue(value: object) -> bool:
    return isinstance(value, bytes) and len(value) <= MAX_QUEUE


def _window(value: object) -> bool:
    if not isinstance(value, _SEQUENCE) or len(value) not in (0, 5):
        return False
    for number in value:  # all() of a generator takes twice as long
        if not _is_int(number, 1 << 32):
            return False
    return True


def _options(value: object) -> bool:
    return isinstance(value, _SEQUENCE) and len(value) < _MAX_OPTIONS and all(map(_option, value))


def _option(value: object) -> bool:
    return (
        isinstance(value, _SEQUENCE)
        and len(value) == 3
        and _is_int(value[0], 1 << 16)
        and _is_int(value[1], 1 << 16)
        and options.valid(*value)
    )


_OTHERS: dict[str, Callable[[object], bool]] = {
    "family": _family,
    "state": _state,
    "local": _end,
    "remote": _end,
    "send_queue": _queue,
    "receive_queue": _queue,
    "window": _window,
    "error": _error,
    "options": _options,
}
# Each field's name, the bound of an integer (0: it is another), and what says whether it is valid
_RULES = tuple(
    (name, limit, _OTHERS.get(name) or partial(_is_int, limit=limit))
    for name in _FIELDS
    for limit in [_LIMITS.get(name, 0)]
)


def _contradiction(stream: Stream) -> str | None:
    """What in a stream, whose fields are valid each, cannot be together."""
    if not _is_address(stream.family, stream.local[0]):
        return "local address is not of its family"
    if stream.has_peer != _is_address(stream.family, stream.remote[0]) or (
        not stream.has_peer and stream.remote != ("", 0)
    ):
        return "remote address does not fit its family and state"
    if stream.has_peer != bool(stream.window):
        return "window does not fit its state"
    if not stream.has_peer and (stream.send_queue or stream.urgent):
        return "queues do not fit its state"
    if stream.urgent > len(stream.receive_queue):
        return "urgent byte is not in its queue"
    if stream.unsent > len(stream.send_queue):
        return "unsent bytes are more than it has queued"
    return None


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):  # a zero byte
        return False
    return True


def format_address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
