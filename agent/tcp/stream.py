"""One TCP stream as plain data, and its wire form. No I/O."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from agent.errors import AgentError, ProtocolError
from agent.kernel import uapi
from agent.tcp import options
from agent.tcp.closing import FINS
from agent.tcp.options import OptionValue

MAX_QUEUE = 1 << 30  # bytes; more than the kernel lets a socket hold

Address = tuple[str, int]


class StreamError(AgentError):
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
    remote: Address
    scope: int = 0  # interface index of a link-local address
    send_seq: int = 0  # of the first byte of send_queue
    receive_seq: int = 0  # of the first byte of receive_queue
    send_queue: bytes = b""
    receive_queue: bytes = b""
    unsent: int = 0
    mss: int = 0  # the peer's MSS option (mss_clamp)
    negotiated: int = 0  # TCPI_OPT_* bits
    send_scale: int = 0  # shift counts, RFC 7323
    receive_scale: int = 0
    timestamp: int = 0  # what TSval would have been at the dump
    window: tuple[int, ...] = ()  # struct tcp_repair_window
    send_buffer: int = 0  # SO_SNDBUF as read (twice what was asked for)
    receive_buffer: int = 0
    buffer_locks: int = 0  # SO_BUF_LOCK
    backlog: int = 0  # of a listening socket
    nonblocking: int = 0  # O_NONBLOCK, a property of the open file description
    window_clamp: int = 0
    options: list[tuple[int, int, OptionValue]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{format_address(self.local)}-{format_address(self.remote)}"

    def to_wire(self) -> list[Any]:
        return [getattr(self, name) for name in _FIELDS]

    @classmethod
    def from_wire(cls, wire: object) -> Stream:
        """Raises `ProtocolError` unless every field is of its type, within bounds, and they agree.

        What passes can be given to the kernel; whether it accepts it is for the kernel to say.
        """
        if not isinstance(wire, list) or len(wire) != len(_FIELDS):
            raise ProtocolError(detail="a stream with a wrong number of fields")
        for name, value in zip(_FIELDS, wire, strict=True):
            if not _valid(name, value):
                raise ProtocolError(detail=f"a stream whose {name} is {value!r:.60}")
        stream = cls(*wire)
        stream.local = (wire[3][0], wire[3][1])
        stream.remote = (wire[4][0], wire[4][1])
        if (detail := _contradiction(stream)) is not None:
            raise ProtocolError(detail=f"a stream whose {detail}")
        return stream


_FIELDS = tuple(Stream.__dataclass_fields__)
_ADDRESSES = {"local", "remote"}
_QUEUES = {"send_queue", "receive_queue"}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STATES = {*FINS, uapi.TCP_LISTEN}
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
    "send_buffer": _INT,
    "receive_buffer": _INT,
    "buffer_locks": 4,
    "backlog": _INT,
    "nonblocking": 2,
    "window_clamp": _INT,
}


def _valid(name: str, value: object) -> bool:
    if name in _LIMITS:
        return _is_int(value, _LIMITS[name])
    if name == "family":
        return _is_int(value, 1 << 16) and value in _FAMILIES
    if name == "state":
        return _is_int(value, 1 << 8) and value in _STATES
    if name in _ADDRESSES:
        return (
            isinstance(value, list | tuple)
            and len(value) == 2
            and isinstance(value[0], str)
            and _is_int(value[1], 1 << 16)
        )
    if name in _QUEUES:
        return isinstance(value, bytes) and len(value) <= MAX_QUEUE
    if name == "window":
        return (
            isinstance(value, list | tuple)
            and len(value) in (0, 5)
            and all(_is_int(number, 1 << 32) for number in value)
        )
    return (
        name == "options"
        and isinstance(value, list | tuple)
        and len(value) < 128
        and all(map(_option, value))
    )


def _option(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and _is_int(value[0], 1 << 16)
        and _is_int(value[1], 1 << 16)
        and options.valid(*value)
    )


def _is_int(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _contradiction(stream: Stream) -> str | None:
    """What in a stream, whose fields are valid each, cannot be together."""
    listens = stream.state == uapi.TCP_LISTEN
    if not _is_address(stream.family, stream.local[0]):
        return "local address is not of its family"
    if stream.remote != ("", 0) if listens else not _is_address(stream.family, stream.remote[0]):
        return "remote address does not fit its family and state"
    if listens != (not stream.window):
        return "window does not fit its state"
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
