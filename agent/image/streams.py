"""TCP streams as records: several streams in one, long queues in pieces of their own. Sans-I/O.

    {"kind": "queue", "inode": int, "queue": "send" | "receive", "data": bytes}   a piece
    {"kind": "streams", "streams": [Stream.to_wire()]}

The pieces of a stream's queues come before the record that holds the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.errors import ProtocolError
from agent.image.records import CHUNK, ImageTooLarge, Record
from agent.tcp.stream import Stream

_BATCH_BYTES = 4 << 20
_BATCH_STREAMS = 4096
_OPTION_BYTES = 16  # of one option, beside its value of bytes
_QUEUES = ("send", "receive")
_FIELD_SEND, _FIELD_RECEIVE = (
    tuple(Stream.__dataclass_fields__).index(f"{queue}_queue") for queue in _QUEUES
)
MAX_QUEUED = 4 << 30  # bytes of queues in one migration


def stream_records(streams: Iterable[Stream]) -> Iterator[Record]:
    """The records that carry `streams`, in order."""
    batch: list[object] = []
    size = 0
    for stream in streams:
        queued = len(stream.send_queue) + len(stream.receive_queue)
        if queued > _BATCH_BYTES:
            yield from _pieces(stream)
            stream = replace(stream, send_queue=b"", receive_queue=b"")
            queued = 0
        for *_, value in stream.options:
            queued += _OPTION_BYTES + (len(value) if isinstance(value, bytes) else 0)
        if size + queued > _BATCH_BYTES or len(batch) == _BATCH_STREAMS:
            yield {"kind": "streams", "streams": batch}
            batch, size = [], 0
        batch.append(stream.to_wire())
        size += queued
    if batch:
        yield {"kind": "streams", "streams": batch}


def _pieces(stream: Stream) -> Iterator[Record]:
    for queue in _QUEUES:
        data = memoryview(getattr(stream, f"{queue}_queue"))
        for start in range(0, len(data), CHUNK):
            piece = bytes(data[start : start + CHUNK])
            yield {"kind": "queue", "inode": stream.inode, "queue": queue, "data": piece}


class StreamCollector:
    """Puts streams together again from their records."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, str], list[bytes]] = {}
        self._queued = 0

    def feed(self, record: Record) -> list[Stream]:
        """The streams that `record` completes. Raises `ProtocolError` or `ImageTooLarge`."""
        if record["kind"] == "queue":
            self._piece(record)
            return []
        rows = record.get("streams")
        if not isinstance(rows, list):
            raise ProtocolError(detail="a record of streams without streams")
        return [Stream.from_wire(self._complete(row)) for row in rows]

    def _piece(self, record: Record) -> None:
        inode, queue, data = record.get("inode"), record.get("queue"), record.get("data")
        if not isinstance(inode, int) or queue not in _QUEUES or not isinstance(data, bytes):
            raise ProtocolError(detail="a malformed piece of a queue")
        self._queued += len(data)
        if self._queued > MAX_QUEUED:
            raise ImageTooLarge(length=self._queued, limit=MAX_QUEUED)
        self._pieces.setdefault((inode, str(queue)), []).append(data)

    def _complete(self, row: object) -> object:
        if self._pieces and isinstance(row, list) and len(row) > _FIELD_RECEIVE:
            inode = row[0]
            if isinstance(inode, int):
                for queue, index in zip(_QUEUES, (_FIELD_SEND, _FIELD_RECEIVE), strict=True):
                    pieces = self._pieces.pop((inode, queue), None)
                    if pieces is not None:
                        row[index] = b"".join(pieces)
        return row
