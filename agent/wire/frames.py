"""Framing of control messages, sans-I/O: 4 bytes of length, then one msgpack map.

Sizes are limited before memory is taken: a frame longer than `MAX_FRAME` is refused from
its length alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from agent.errors import ProtocolError

MAX_FRAME = 8 << 20
_LENGTH = struct.Struct("!I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One frame; text that is not Unicode becomes escapes.

    Raises `ProtocolError` where the message is larger than `MAX_FRAME`.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="backslashreplace")
    if len(body) > MAX_FRAME:
        raise ProtocolError(detail=f"a message of {len(body)} bytes is too large to send")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Turns received bytes into messages, whatever the boundaries they arrive with."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes, one by one.

        Raises `ProtocolError` when it comes to something malformed; what was before is not lost.
        """
        self._buffer += data
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                start = bytes(self._buffer[:40])
                raise ProtocolError(detail=f"a frame of {length} bytes (it begins with {start!r})")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode_body(body)

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame; not 0 at the end of input means truncation."""
        return len(self._buffer)


def decode_body(body: bytes) -> Message:
    """One msgpack map with string keys, or `ProtocolError`."""
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=False,
            max_str_len=1 << 20,
            max_bin_len=MAX_FRAME,
            max_array_len=1 << 20,
            max_map_len=1 << 16,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise ProtocolError(detail=f"a frame that is not msgpack: {error}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError(detail="a frame that is not a map with string keys")
    return message
