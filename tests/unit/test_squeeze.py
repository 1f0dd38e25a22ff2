"""What is compressed on its way: only what pays, and nothing that cannot be taken apart again."""

from __future__ import annotations

import random
import zlib
from typing import Any

import msgpack
import pytest

from agent.image import squeeze
from agent.image.records import (
    HEADER_SIZE,
    IMAGE_VERSION,
    MAX_BODY,
    ImageError,
    Record,
    RecordDecoder,
    RecordEncoder,
)
from agent.image.seal import KEY_SIZE, Aead, Digest, Seal
from agent.image.squeeze import Squeezer, expand, squeezer, zstd

MIB = 1 << 20
RANDOM = random.Random(1).randbytes(MIB)
TEXT = b"".join(b"key:%08d a value" % number for number in range(MIB // 20))
GIGABIT, HUNDRED_GIGABIT = 8e-9, 8e-11  # seconds a byte


class Processor:
    """Compresses at a speed of its own."""

    def __init__(self, cost: float) -> None:
        self.cost, self.now, self.sizes = cost, 0.0, list[int]()

    def compress(self, data: bytes) -> bytes:
        self.now += self.cost * len(data)
        self.sizes.append(len(data))
        return zlib.compress(data, 1)

    def squeezer(self, wire: float) -> Squeezer:
        one = Squeezer(self.compress, lambda: self.now)
        one.wire = wire
        return one


@pytest.mark.parametrize(
    ("wire", "cost", "body", "pays"),
    [
        (GIGABIT, 1e-9, TEXT, True),
        (GIGABIT, 1e-9, RANDOM, False),
        (GIGABIT, 20e-9, TEXT, False),  # a slow processor
        (1e-6, 20e-9, TEXT, True),  # and a slower link
        (HUNDRED_GIGABIT, 0.01e-9, TEXT, False),
        (0.0, 1e-9, TEXT, False),  # the network does not hold it up
        (1.0, 1e-9, TEXT[:1000], False),
        (1.0, 1e-9, b"", False),
    ],
)
def test_what_pays(wire: float, cost: float, body: bytes, pays: bool) -> None:
    one = Processor(cost).squeezer(wire)
    found = [one.squeeze(body) for _ in range(20)]
    assert (found[-1] is not None) is pays
    assert all(len(part) < len(body) for part in found if part is not None)


def test_on_a_fast_link_not_even_a_sample_is_compressed() -> None:
    processor = Processor(1e-9)
    assert processor.squeezer(HUNDRED_GIGABIT).squeeze(TEXT) is None
    assert processor.sizes == []


def test_what_does_not_shrink_costs_no_more_than_a_sample() -> None:
    processor = Processor(1e-9)
    one = processor.squeezer(GIGABIT)
    assert [one.squeeze(RANDOM) for _ in range(10)] == [None] * 10
    assert sum(processor.sizes) < 10 * len(RANDOM) / 16


def test_each_record_is_looked_at_by_itself() -> None:
    one = Processor(1e-9).squeezer(GIGABIT)
    found = [one.squeeze(body) is not None for body in (TEXT, RANDOM, TEXT, RANDOM)]
    assert found == [True, False, True, False]


def test_where_one_of_both_cannot_nothing_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zstd is not None and squeezer(True) is not None
    for said in (False, None, 1, "yes", [True]):
        assert squeezer(said) is None
    monkeypatch.setattr(squeeze, "zstd", None)
    assert squeezer(True) is None and expand(zstd.compress(b"x"), 10) is None


def always() -> Squeezer:
    one = squeezer(True)
    assert one is not None
    one.wire = 1.0
    return one


@pytest.mark.parametrize("seal", [Digest(), Aead(bytes(KEY_SIZE))], ids=["digest", "sealed"])
def test_squeezed_records_come_through(seal: Seal) -> None:
    records: list[Record] = [
        {"kind": "pages", "data": TEXT}, {"kind": "ping"}, {"kind": "pages", "data": RANDOM},
        {"kind": "pages", "data": bytes(7 * MIB)}, {"kind": "end"},
    ]  # fmt: skip
    encoder, decoder = RecordEncoder(seal, always()), RecordDecoder(seal)
    pieces = [head + bytes(body) for head, body in map(encoder.encode, records)]
    assert [one[3] for one in pieces] == [1, 0, 0, 1, 0]
    assert len(pieces[0]) < len(TEXT) / 2 and len(pieces[3]) < 10_000
    assert list(decoder.feed(b"".join(pieces))) == records


def raw(form: int, body: bytes) -> bytes:
    start = b"SF" + bytes([IMAGE_VERSION, form, 0, 0, 0, 0]) + len(body).to_bytes(4, "big")
    return start + Digest().close(start, 0, body)[0] + body


PACKED = zstd.compress(msgpack.packb({"kind": "ping"}))
BAD: dict[str, Any] = {
    "another form": (2, msgpack.packb({"kind": "ping"})),
    "not compressed": (1, msgpack.packb({"kind": "ping"})),
    "nothing": (1, b""),
    "cut short": (1, PACKED[:-1]),
    "more behind it": (1, PACKED + b"x"),
    "twice": (1, PACKED + PACKED),
    "no map": (1, zstd.compress(b"\xc1")),
    "compressed, but said to be plain": (0, PACKED),
    "a bomb": (1, zstd.compress(bytes(MAX_BODY + 1))),
    "a larger bomb": (1, zstd.compress(bytes(1 << 28))),
    "a window without bounds": (
        1,
        zstd.compress(
            bytes(range(256)) * 64,
            options={zstd.CompressionParameter.window_log: 27,
                     zstd.CompressionParameter.content_size_flag: 0},
        )[:4] + b"\x00\xff" + bytes(20),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taken_apart_is_damage(name: str) -> None:
    with pytest.raises(ImageError):
        list(RecordDecoder().feed(raw(*BAD[name])))


def test_the_largest_record_may_be_compressed() -> None:
    body = msgpack.packb({"kind": "x", "d": bytes(MAX_BODY - 20)})
    assert len(body) <= MAX_BODY < len(body) + 20
    (record,) = RecordDecoder().feed(raw(1, zstd.compress(body)))
    assert len(record["d"]) == MAX_BODY - 20


def test_each_altered_byte_of_a_squeezed_record_is_seen() -> None:
    encoder = RecordEncoder(None, always())
    head, body = encoder.encode({"kind": "pages", "data": bytes(1 << 16)})
    stream = head + bytes(body)
    for place in (3, *range(HEADER_SIZE, len(stream))):
        altered = bytearray(stream)
        altered[place] ^= 1
        with pytest.raises(ImageError):
            list(RecordDecoder().feed(bytes(altered)))
