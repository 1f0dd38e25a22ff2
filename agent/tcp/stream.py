"""One TCP stream as plain data, and its wire form. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.errors import AgentError, ProtocolError

STREAM_VERSION = 1
MAX_QUEUE = 1 << 30  # bytes; more than the kernel lets a socket hold

Address = tuple[str, int]
OptionValue = int | bytes


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
        """Raises `ProtocolError` unless every field has its type and is within bounds."""
        if not isinstance(wire, list) or len(wire) != len(_FIELDS):
            raise ProtocolError(detail="a stream with a wrong number of fields")
        for name, value in zip(_FIELDS, wire, strict=True):
            if not _valid(name, value):
                raise ProtocolError(detail=f"a stream whose {name} is {value!r:.60}")
        stream = cls(*wire)
        stream.local = (wire[3][0], wire[3][1])
        stream.remote = (wire[4][0], wire[4][1])
        if stream.unsent > len(stream.send_queue):
            raise ProtocolError(detail="a stream with more unsent bytes than it has queued")
        return stream


_FIELDS = tuple(Stream.__dataclass_fields__)
_ADDRESSES = {"local", "remote"}
_BYTES = {"send_queue", "receive_queue"}


def _valid(name: str, value: object) -> bool:
    if name in _ADDRESSES:
        return (
            isinstance(value, list | tuple)
            and len(value) == 2
            and isinstance(value[0], str)
            and len(value[0]) < 64
            and _is_int(value[1], 1 << 16)
        )
    if name in _BYTES:
        return isinstance(value, bytes) and len(value) <= MAX_QUEUE
    if name == "window":
        return (
            isinstance(value, list | tuple)
            and len(value) in (0, 5)
            and all(_is_int(number, 1 << 32) for number in value)
        )
    if name == "options":
        return isinstance(value, list | tuple) and len(value) < 128 and all(map(_option, value))
    return _is_int(value, 1 << 64 if name == "inode" else 1 << 32)


def _option(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and _is_int(value[0], 1 << 16)
        and _is_int(value[1], 1 << 16)
        and (
            (isinstance(value[2], int) and -(1 << 31) <= value[2] < 1 << 32)
            or (isinstance(value[2], bytes) and len(value[2]) <= 256)
        )
    )


def _is_int(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def format_address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
