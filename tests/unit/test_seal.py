"""Sealed records: nobody without the key reads, alters, repeats, drops or exchanges one unseen."""

from __future__ import annotations

import pytest

from agent.errors import AgentError
from agent.image.records import (
    HEADER_SIZE,
    ImageError,
    ImageTruncated,
    Record,
    RecordDecoder,
    RecordEncoder,
)
from agent.image.seal import KEY_SIZE, Aead, new_key

KEY, OTHER = bytes(KEY_SIZE), bytes([1] * KEY_SIZE)
SAMPLES: list[Record] = [
    {"kind": "ping"},
    {"kind": "pages", "pid": 5, "runs": [[4096, 1, 1]], "data": bytes(range(256)) * 16},
    {"kind": "end"},
]


def sealed(*records: Record, key: bytes = KEY) -> list[bytes]:
    encoder = RecordEncoder(Aead(key))
    return [head + bytes(body) for head, body in map(encoder.encode, records)]


def decoded(data: bytes, key: bytes = KEY) -> list[Record]:
    decoder = RecordDecoder(Aead(key))
    records = list(decoder.feed(data))
    decoder.end()
    return records


def test_what_goes_in_comes_out_and_is_not_to_be_read() -> None:
    stream = b"".join(sealed(*SAMPLES))
    assert decoded(stream) == SAMPLES
    decoder = RecordDecoder(Aead(KEY))
    assert [one for byte in stream for one in decoder.feed(bytes([byte]))] == SAMPLES
    assert b"pages" not in stream and bytes(range(64)) not in stream


def test_each_altered_byte_is_seen() -> None:
    """Of the header, the seal and the body: refused, or the input is incomplete."""
    stream = b"".join(sealed(SAMPLES[0]))
    for place in range(len(stream)):
        for bit in (0x01, 0x80):
            altered = bytearray(stream)
            altered[place] ^= bit
            with pytest.raises(AgentError) as raised:
                decoded(bytes(altered))
            if not 2 <= place < 12 or place == 3:
                assert type(raised.value) is ImageError


def test_another_key_opens_nothing() -> None:
    """As of an earlier link, or of the other direction of this one."""
    with pytest.raises(ImageError, match="record 0 does not match"):
        decoded(sealed(SAMPLES[0], key=OTHER)[0])


def test_repeated_dropped_or_exchanged_records_are_seen() -> None:
    one, two, three = sealed(*SAMPLES)
    for stream in (two, one + one, one + three, one + three + two):
        with pytest.raises(ImageError, match=r"record \d came where \d was due"):
            decoded(stream)


def test_a_number_that_was_changed_helps_nobody() -> None:
    one, two, three = sealed(*SAMPLES)
    for moved in (one, three):
        renumbered = moved[:4] + two[4:8] + moved[8:]
        with pytest.raises(ImageError, match="record 1 does not match"):
            decoded(one + renumbered)


def test_cut_short_it_is_truncated() -> None:
    stream = sealed(SAMPLES[1])[0]
    for length in (1, HEADER_SIZE - 1, HEADER_SIZE, len(stream) - 1):
        with pytest.raises(ImageTruncated):
            decoded(stream[:length])


def test_equal_records_do_not_look_equal() -> None:
    one, two = sealed(SAMPLES[1], SAMPLES[1])
    assert one[HEADER_SIZE:] != two[HEADER_SIZE:]
    assert new_key() != new_key()
