"""Streams as records: batches, long queues in pieces, and what a receiver refuses."""

from __future__ import annotations

import socket
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.image import streams as module
from agent.image.records import MAX_BODY, ImageTooLarge, Record, RecordDecoder, RecordEncoder
from agent.image.streams import StreamCollector, stream_records
from agent.kernel import uapi
from agent.tcp import options
from agent.tcp.stream import Stream

CHUNK, BATCH = 16, 64  # bytes, in place of 1 and 4 MiB


def stream(inode: int, send: bytes = b"", receive: bytes = b"", **over: Any) -> Stream:
    fields: dict[str, Any] = {
        "inode": inode,
        "family": socket.AF_INET,
        "state": uapi.TCP_ESTABLISHED,
        "local": ("10.77.0.100", 6379),
        "remote": ("10.77.0.13", 40000 + inode),
        "send_queue": send,
        "receive_queue": receive,
        "window": (1, 2, 3, 4, 5),
        **over,
    }
    return Stream(**fields)


@pytest.fixture(autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(module, "_BATCH_BYTES", BATCH)
    monkeypatch.setattr(module, "_BATCH_STREAMS", 3)


def across(records: list[Record]) -> list[Record]:
    """The records as they arrive."""
    encoder, decoder = RecordEncoder(), RecordDecoder()
    return [one for record in records for one in decoder.feed(b"".join(encoder.encode(record)))]


def collected(records: list[Record]) -> list[Stream]:
    collector = StreamCollector()
    return [one for record in across(records) for one in collector.feed(record)]


def rows(streams: list[Stream]) -> object:
    """All fields, with tuples as they come off the wire."""
    return msgpack.unpackb(msgpack.packb([one.to_wire() for one in streams]))


QUEUES = st.binary(max_size=3 * BATCH)


def test_streams_come_out_as_they_went_in() -> None:
    @given(st.lists(st.tuples(QUEUES, QUEUES), max_size=10))
    def hold(queues: list[tuple[bytes, bytes]]) -> None:
        sent = [
            stream(inode, send, receive, unsent=len(send) // 2)
            for inode, (send, receive) in enumerate(queues, 1)
        ]
        records = list(stream_records(sent))
        received = collected(records)
        assert rows(received) == rows(sent)
        for record in records:
            if record["kind"] == "queue":
                assert 0 < len(record["data"]) <= CHUNK
            else:
                assert 0 < len(record["streams"]) <= 3
                queued = (len(row[8]) + len(row[9]) for row in record["streams"])
                assert sum(queued) <= BATCH

    hold()


def test_a_stream_is_not_changed_by_being_sent() -> None:
    one = stream(1, bytes(BATCH + 1), b"x")
    before = one.to_wire()
    list(stream_records([one]))
    assert one.to_wire() == before


def test_no_streams_are_no_records() -> None:
    assert list(stream_records([])) == []


def test_a_long_queue_goes_ahead_in_pieces() -> None:
    records = list(stream_records([stream(1, b"s" * 70, b"r" * 20), stream(2, b"short")]))
    assert [(one["kind"], one.get("queue")) for one in records] == [
        *[("queue", "send")] * 5,
        *[("queue", "receive")] * 2,
        ("streams", None),
    ]
    one, two = collected(records)
    assert (one.send_queue, one.receive_queue) == (b"s" * 70, b"r" * 20)
    assert (two.send_queue, two.receive_queue) == (b"short", b"")


def test_pieces_of_two_streams_may_be_mixed() -> None:
    records = list(stream_records([stream(1, b"a" * 70), stream(2, b"b" * 70)]))
    pieces = [one for one in records if one["kind"] == "queue"]
    others = [one for one in records if one["kind"] != "queue"]
    mixed = [one for pair in zip(pieces[:5], pieces[5:], strict=True) for one in pair]
    assert [one.send_queue for one in collected(mixed + others)] == [b"a" * 70, b"b" * 70]


def test_a_full_batch_fits_in_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every option that can be set, and the real limits."""
    monkeypatch.undo()
    values = [(one.level, one.number, bytes(one.size) if one.size else 1) for one in options.TABLE]
    address = ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0", 65535)
    largest = {
        name: (1 << 31) - 1
        for name in ("send_buffer", "receive_buffer", "backlog", "window_clamp", "send_seq")
    }
    streams = [
        stream(
            (1 << 32) + inode,
            bytes(1024),
            family=socket.AF_INET6,
            local=address,
            remote=address,
            options=values,
            window=((1 << 32) - 1,) * 5,
            **largest,
        )
        for inode in range(4096)
    ]
    encoder = RecordEncoder()
    for record in stream_records(streams):
        assert len(encoder.encode(record)[1]) < MAX_BODY


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "streams"},
        {"kind": "streams", "streams": None},
        {"kind": "streams", "streams": {}},
        {"kind": "streams", "streams": [5]},
        {"kind": "streams", "streams": [[1, 2, 3]]},
        {"kind": "streams", "streams": [stream(1, unsent=1).to_wire()]},
        {"kind": "queue"},
        {"kind": "queue", "inode": "1", "queue": "send", "data": b""},
        {"kind": "queue", "inode": 1, "queue": "other", "data": b""},
        {"kind": "queue", "inode": 1, "queue": ["send"], "data": b""},
        {"kind": "queue", "inode": 1, "queue": "send", "data": "text"},
    ],
    ids=repr,
)
def test_a_malformed_record_is_refused(record: Record) -> None:
    with pytest.raises(ProtocolError):
        collected([record])


def test_pieces_also_before_malformed_streams() -> None:
    piece = {"kind": "queue", "inode": 1, "queue": "send", "data": b"x"}
    for row in (None, [], [1], [[]] * 30, ["1"] * 30):
        with pytest.raises(ProtocolError):
            collected([piece, {"kind": "streams", "streams": [row]}])


def test_pieces_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 100)
    collector = StreamCollector()
    for inode in range(10):
        collector.feed({"kind": "queue", "inode": inode, "queue": "send", "data": bytes(10)})
    with pytest.raises(ImageTooLarge) as raised:
        collector.feed({"kind": "queue", "inode": 11, "queue": "receive", "data": b"x"})
    assert "101" in raised.value.message
