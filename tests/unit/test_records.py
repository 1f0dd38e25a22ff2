"""The codec of the image: what goes in comes out, and every damage is told by its name."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import AgentError
from agent.fault import damage
from agent.image.records import (
    HEADER_SIZE,
    IMAGE_VERSION,
    MAX_BODY,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    ImageVersionDiffers,
    Record,
    RecordDecoder,
    RecordEncoder,
)

SAMPLES: list[Record] = [
    {"kind": "ping"},
    {"kind": "file", "files": [["pages-1.img", bytes(range(256))], ["core.img", b""]]},
    {"kind": "handover", "packets": [b"\x45\x00"], "stopped": [1, 2]},
    {"kind": "pong", "at": 12.5},
    {"kind": "failed", "error": {"code": "x", "fields": {"größe": 1}}, "phase": "ship"},
]


def encoded(*records: Record) -> bytes:
    encoder = RecordEncoder()
    return b"".join(part for record in records for part in encoder.encode(record))


def raw(body: bytes, *, version: int = IMAGE_VERSION, sequence: int = 0) -> bytes:
    """A record with a right digest over whatever body."""
    start = struct.pack("!2sBBII", b"SF", version, 0, sequence, len(body))
    return start + sha256(start + body).digest()[:16] + body


def decoded(data: bytes) -> list[Record]:
    decoder = RecordDecoder()
    records = list(decoder.feed(data))
    decoder.end()
    return records


NAMED = (ImageError, ImageVersionDiffers, ImageTooLarge, ImageTruncated)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=4,
)
RECORDS = st.builds(lambda kind, more: {**more, "kind": kind}, st.text(),
                    st.dictionaries(st.text(), VALUES, max_size=3))  # fmt: skip


@settings(max_examples=40)
@given(st.lists(RECORDS, max_size=3))
def test_what_goes_in_comes_out(records: list[Record]) -> None:
    assert decoded(encoded(*records)) == records


@settings(max_examples=40)
@given(st.lists(st.sampled_from(SAMPLES), max_size=4), st.data())
def test_the_boundaries_do_not_matter(records: list[Record], data: Any) -> None:
    stream = encoded(*records)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    decoder = RecordDecoder()
    found: list[Record] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    decoder.end()
    assert found == records


def test_byte_by_byte() -> None:
    decoder = RecordDecoder()
    stream = encoded(*SAMPLES)
    found = [record for byte in stream for record in decoder.feed(bytes([byte]))]
    decoder.end()
    assert found == SAMPLES


def test_a_record_is_there_with_its_last_byte_and_not_before() -> None:
    stream = encoded(SAMPLES[1])
    decoder = RecordDecoder()
    assert list(decoder.feed(stream[:-1])) == []
    assert list(decoder.feed(stream[-1:])) == [SAMPLES[1]]


def test_trailing_data_is_the_next_record_or_an_error() -> None:
    first, both = len(encoded(SAMPLES[1])), encoded(*SAMPLES[1:3])
    for length in (1, 2, HEADER_SIZE, HEADER_SIZE + 1):
        decoder = RecordDecoder()
        assert list(decoder.feed(both[: first + length])) == [SAMPLES[1]]
        with pytest.raises(ImageTruncated):
            decoder.end()
        assert list(decoder.feed(both[first + length :])) == [SAMPLES[2]]
    decoder = RecordDecoder()
    found = decoder.feed(encoded(SAMPLES[1]) + bytes(HEADER_SIZE))
    assert next(found) == SAMPLES[1], "what was whole is not lost"
    with pytest.raises(ImageError):
        next(found)


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: record["kind"])
def test_truncated_at_each_length(record: Record) -> None:
    stream = encoded(SAMPLES[0], record)
    first = len(encoded(SAMPLES[0]))
    for length in range(first + 1, len(stream)):
        decoder = RecordDecoder()
        assert list(decoder.feed(stream[:length])) == [SAMPLES[0]]
        with pytest.raises(ImageTruncated) as raised:
            decoder.end()
        assert f"{length - first} bytes of record 1" in raised.value.message


@pytest.mark.parametrize("record", SAMPLES[:2], ids=lambda record: record["kind"])
def test_each_altered_byte_is_seen(record: Record) -> None:
    """No mutation of one byte passes: it is refused at once, or leaves the input incomplete."""
    stream = encoded(record)
    for place in range(len(stream)):
        for bit in (0x01, 0x80, 0xFF):
            altered = bytearray(stream)
            altered[place] ^= bit
            with pytest.raises(NAMED) as raised:
                decoded(bytes(altered))
            if place == 2:
                assert raised.type in (ImageVersionDiffers, ImageError)
            elif not 8 <= place < 12:  # a length that is too large, or more than there is
                assert raised.type is ImageError


@given(st.binary(max_size=200))
def test_garbage_gives_a_named_error_or_waits_for_more(data: bytes) -> None:
    try:
        assert decoded(data) == [] == list(data)
    except NAMED:
        pass


def test_another_version_is_told_as_such_even_if_it_is_laid_out_in_another_way() -> None:
    with pytest.raises(ImageVersionDiffers) as raised:
        decoded(b"SF\x07" + bytes(HEADER_SIZE))
    assert "version 7" in raised.value.message
    for version in (IMAGE_VERSION - 1, IMAGE_VERSION + 1):
        with pytest.raises(ImageVersionDiffers):
            decoded(raw(msgpack.packb({"kind": "ping"}), version=version))


@pytest.mark.parametrize("length", [MAX_BODY + 1, 0xFFFFFFFF])
def test_an_oversized_record_is_refused_from_its_header(length: int) -> None:
    header = struct.pack("!2sBBII", b"SF", IMAGE_VERSION, 0, 0, length) + bytes(16)
    with pytest.raises(ImageTooLarge) as raised:
        decoded(header)
    assert str(length) in raised.value.message


def test_the_largest_record_passes_and_one_byte_more_is_not_sent() -> None:
    overhead = len(msgpack.packb({"kind": "x", "d": bytes(1 << 16)})) - (1 << 16)
    largest = {"kind": "x", "d": bytes(MAX_BODY - overhead)}
    assert decoded(encoded(largest)) == [largest]
    encoder = RecordEncoder()
    with pytest.raises(ImageTooLarge):
        encoder.encode({"kind": "x", "d": bytes(MAX_BODY - overhead + 1)})
    header, body = encoder.encode(SAMPLES[0])  # and the sequence has no gap
    assert decoded(header + body) == [SAMPLES[0]]


def test_a_lost_doubled_or_exchanged_record_is_seen() -> None:
    encoder = RecordEncoder()
    one, two, three = (b"".join(encoder.encode(record)) for record in SAMPLES[:3])
    for stream in (two, one + three, one + one + two, one + three + two):
        with pytest.raises(ImageError, match=r"record \d came where \d was due"):
            decoded(stream)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",  # never used in msgpack
        b"\x81\xa4kind",  # ends early
        msgpack.packb({"kind": "x"}) + b"\x00",  # more than one value
        msgpack.packb(["kind", "x"]),
        msgpack.packb({"kind": 5}),
        msgpack.packb({"other": "x"}),
        msgpack.packb({b"kind": "x"}),
        msgpack.packb({"kind": msgpack.ExtType(1, b"x")}),
        b"\x81\xa4kind\xa1\xff",  # not UTF-8
        b"\x91" * 2000,  # nested too deep
        b"\x81\xa4kind\xdf\xff\xff\xff\xff",  # says it has 4 billion entries
    ],
    ids=lambda body: body[:12].hex(),
)
def test_a_right_digest_over_what_is_no_record(body: bytes) -> None:
    with pytest.raises(ImageError):
        decoded(raw(body))


def test_after_an_error_nothing_passes_any_more() -> None:
    decoder = RecordDecoder()
    spoilt = bytearray(encoded(SAMPLES[0]))
    spoilt[-1] ^= 1
    for data in (bytes(spoilt), b"", encoded(SAMPLES[0])):
        with pytest.raises(ImageError):
            list(decoder.feed(data))


@pytest.mark.parametrize(
    "action, error",
    [
        ("corrupt", ImageError),
        ("truncate", ImageTruncated),
        ("oversize", ImageTooLarge),
        ("newer", ImageVersionDiffers),
    ],
)
def test_each_injected_damage_has_its_own_error(action: str, error: type[AgentError]) -> None:
    header, body = damage(action, *RecordEncoder().encode(SAMPLES[1]))
    with pytest.raises(AgentError) as raised:
        decoded(header + body)
    assert type(raised.value) is error


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=64))
def test_no_damage_is_asked_for_and_none_is_done(body: bytes) -> None:
    assert damage("full", b"header", body) == (b"header", body)
