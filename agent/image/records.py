"""The image as it travels: a sequence of numbered, sealed records. Sans-I/O.

A record is a header and a msgpack map:

    magic "SF" | version u8 | form u8 | sequence u32 | length u32 | seal 16 bytes | body

The form is 0, or 1 where the map is compressed (`agent.image.squeeze`). The seal is over the first
twelve bytes and the body, see `agent.image.seal`. A gap in the sequence,
a wrong seal, a length over the limit or another version each raise their own error before anything
is done with the body. docs/image-format.md lists the kinds of record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from agent.errors import AgentError
from agent.image.seal import SEAL_SIZE, Digest, Seal
from agent.image.squeeze import Squeezer, expand

IMAGE_VERSION = 4  # of the records and what they carry, which has the fields of a Stream
MAX_BODY = 8 << 20
CHUNK = 1 << 20  # of file data in one record

_MAGIC = b"SF"
_PLAIN, _SQUEEZED = 0, 1
_HEADER = struct.Struct("!2sBBII")
HEADER_SIZE = _HEADER.size + SEAL_SIZE
_AT_ONCE = 64 << 10  # bytes to receive while it is not known how long the record is

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
    """Numbers and seals records."""

    def __init__(self, seal: Seal | None = None, squeezer: Squeezer | None = None) -> None:
        self._seal = seal or Digest()
        self._squeezer = squeezer
        self._sequence = 0
        self.size = 0  # bytes of the last record, as it would be without compression

    def encode(self, record: Record) -> tuple[bytes, bytes | memoryview]:
        """Header and body, apart so that a large body is not copied once more."""
        body: bytes = msgpack.packb(record, use_bin_type=True)
        if len(body) > MAX_BODY:
            raise ImageTooLarge(length=len(body), limit=MAX_BODY)
        form, self.size = _PLAIN, HEADER_SIZE + len(body)
        if self._squeezer is not None and (squeezed := self._squeezer.squeeze(body)) is not None:
            form, body = _SQUEEZED, squeezed
        start = _HEADER.pack(_MAGIC, IMAGE_VERSION, form, self._sequence, len(body))
        seal, sealed = self._seal.close(start, self._sequence, body)
        self._sequence += 1
        return start + seal, sealed


class RecordDecoder:
    """Turns received bytes into records, whatever the boundaries they arrive with.

    Bytes are received into `room()`, so that those of a large body are not copied: what is said to
    be there by `took` is read from there.
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self._seal = seal or Digest()
        self._buffer = bytearray(_AT_ONCE)
        self._begin = self._end = 0  # of what is received and not decoded
        self._needed = HEADER_SIZE  # bytes from the beginning on
        self._sequence = 0
        self._failure: AgentError | None = None
        self.size = 0  # as `RecordEncoder.size`

    def room(self) -> memoryview:
        """Where the next bytes go, at least one."""
        if self._begin == self._end:
            self._begin = self._end = 0
        most = max(self._begin + self._needed, _AT_ONCE)
        if most > len(self._buffer):
            received = self._buffer[self._begin : self._end]
            # Another one, of no other size if that will do: somebody may still hold a view of this.
            self._buffer = bytearray(max(len(self._buffer), self._needed))
            self._buffer[: len(received)] = received
            self._begin, self._end, most = 0, len(received), max(self._needed, _AT_ONCE)
        return memoryview(self._buffer)[self._end : most]

    def took(self, size: int) -> Iterator[Record]:
        """Yield the records that `size` more bytes complete; raises one of the errors above.

        Who stops before the last gets the others of `took(0)`.
        """
        self._end += size
        if self._failure is not None:
            raise self._failure
        try:
            while self._end - self._begin >= self._needed:
                record = self._next()
                if record is not None:
                    yield record
        except AgentError as error:
            self._failure = error
            raise

    def feed(self, data: bytes) -> Iterator[Record]:
        """The same, of bytes that were received elsewhere."""
        yield from self.took(0)
        view = memoryview(data)
        while view:
            room = self.room()
            size = min(len(room), len(view))
            room[:size] = view[:size]
            yield from self.took(size)
            view = view[size:]

    def _next(self) -> Record | None:
        view = memoryview(self._buffer)[self._begin : self._end]
        magic, version, form, sequence, length = _HEADER.unpack_from(view)
        if magic != _MAGIC:
            raise ImageError(detail=f"a record begins with {bytes(view[:8])!r}")
        if version != IMAGE_VERSION:
            raise ImageVersionDiffers(theirs=version, ours=IMAGE_VERSION)
        if length > MAX_BODY:
            raise ImageTooLarge(length=length, limit=MAX_BODY)
        if sequence != self._sequence:
            raise ImageError(detail=f"record {sequence} came where {self._sequence} was due")
        self._needed = HEADER_SIZE + length
        if len(view) < self._needed:
            return None
        body = self._seal.open(
            view[: _HEADER.size],
            sequence,
            view[_HEADER.size : HEADER_SIZE],
            view[HEADER_SIZE : self._needed],
        )
        if body is None:
            raise ImageError(detail=f"record {sequence} does not match its digest")
        if form not in (_PLAIN, _SQUEEZED):
            raise ImageError(detail=f"record {sequence} has the form {form}")
        whole = body if form == _PLAIN else expand(body, MAX_BODY)
        if whole is None:
            raise ImageError(detail=f"record {sequence} cannot be decompressed")
        record = _decode(whole, sequence)
        self.size = HEADER_SIZE + len(whole)
        self._begin += self._needed
        self._needed = HEADER_SIZE
        self._sequence += 1
        return record

    def end(self) -> None:
        """The input is over. Raises `ImageTruncated` where it ended inside a record."""
        if self._begin < self._end:
            left = self._end - self._begin
            raise ImageTruncated(detail=f"{left} bytes of record {self._sequence}")


def _decode(body: bytes | memoryview, sequence: int) -> Record:
    try:
        record = msgpack.unpackb(body, raw=False, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise ImageError(detail=f"record {sequence} is not msgpack: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ImageError(detail=f"record {sequence} has no kind")
    return record
