"""The image as it travels: a sequence of numbered, digested records. Sans-I/O.

A record is a header and a msgpack map:

    magic "SF" | version u8 | 0 u8 | sequence u32 | length u32 | digest 16 bytes | body

The digest is SHA-256, cut to 128 bits, over the first twelve bytes and the body. A gap in the
sequence, a wrong digest, a length over the limit or another version each raise their own error
before anything is done with the body. docs/image-format.md lists the kinds of record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgpack

from agent.errors import AgentError

IMAGE_VERSION = 2  # of the records and what they carry, which has the fields of a Stream
MAX_BODY = 8 << 20
CHUNK = 1 << 20  # of file data in one record

_MAGIC = b"SF"
_HEADER = struct.Struct("!2sBBII")
_DIGEST_SIZE = 16
HEADER_SIZE = _HEADER.size + _DIGEST_SIZE

Record = dict[str, Any]


class ImageError(AgentError):
    code = "image"
    template = "the image is damaged: {detail}"
    hint_template = "Run the migration again; if it happens again, check memory and network."


class ImageTruncated(AgentError):
    code = "image-truncated"
    template = "the image ended early: {detail}"
    hint_template = "The link broke; check the network between the hosts, then run it again."


class ImageTooLarge(AgentError):
    code = "image-too-large"
    template = "a record of {length} bytes is over the limit of {limit}"
    hint_template = "The sender is not a Streamferry agent of this version, or is broken."


class ImageVersionDiffers(AgentError):
    code = "image-version"
    template = "the image has version {theirs}; this side reads version {ours}"
    hint_template = "Install the same version of Streamferry for both hosts."


class RecordEncoder:
    """Numbers and digests records."""

    def __init__(self) -> None:
        self._sequence = 0

    def encode(self, record: Record) -> tuple[bytes, bytes]:
        """Header and body, apart so that a large body is not copied once more."""
        body: bytes = msgpack.packb(record, use_bin_type=True)
        if len(body) > MAX_BODY:
            raise ImageTooLarge(length=len(body), limit=MAX_BODY)
        start = _HEADER.pack(_MAGIC, IMAGE_VERSION, 0, self._sequence, len(body))
        self._sequence += 1
        return start + _digest(start, body), body


class RecordDecoder:
    """Turns received bytes into records, whatever the boundaries they arrive with."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = HEADER_SIZE
        self._sequence = 0

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes; raises one of the errors above."""
        self._buffer += data
        while len(self._buffer) >= self._needed:
            record = self._next()
            if record is not None:
                yield record

    def _next(self) -> Record | None:
        magic, version, _, sequence, length = _HEADER.unpack_from(self._buffer)
        if magic != _MAGIC:
            raise ImageError(detail=f"a record begins with {bytes(self._buffer[:8])!r}")
        if version != IMAGE_VERSION:
            raise ImageVersionDiffers(theirs=version, ours=IMAGE_VERSION)
        if length > MAX_BODY:
            raise ImageTooLarge(length=length, limit=MAX_BODY)
        if sequence != self._sequence:
            raise ImageError(detail=f"record {sequence} came where {self._sequence} was due")
        self._needed = HEADER_SIZE + length
        if len(self._buffer) < self._needed:
            return None
        with memoryview(self._buffer) as view:
            body = view[HEADER_SIZE : self._needed]
            if _digest(view[: _HEADER.size], body) != view[_HEADER.size : HEADER_SIZE]:
                body.release()
                raise ImageError(detail=f"record {sequence} does not match its digest")
            try:
                record = _decode(body, sequence)
            finally:
                body.release()
        del self._buffer[: self._needed]
        self._needed = HEADER_SIZE
        self._sequence += 1
        return record

    def end(self) -> None:
        """The input is over. Raises `ImageTruncated` where it ended inside a record."""
        if self._buffer:
            raise ImageTruncated(detail=f"{len(self._buffer)} bytes of record {self._sequence}")


def _digest(start: bytes | memoryview, body: bytes | memoryview) -> bytes:
    digest = sha256(start)
    digest.update(body)
    return digest.digest()[:_DIGEST_SIZE]


def _decode(body: memoryview, sequence: int) -> Record:
    try:
        record = msgpack.unpackb(body, raw=False, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise ImageError(detail=f"record {sequence} is not msgpack: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ImageError(detail=f"record {sequence} has no kind")
    return record
