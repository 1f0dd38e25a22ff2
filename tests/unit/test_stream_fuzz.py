"""Whatever bytes `Stream.from_bytes` is given, it gives a stream or `ProtocolError`, in bounds.

STREAMFERRY_FUZZ_SECONDS is how long this goes on in all (60 by default, `make nightly` sets more).
Seeds are numbered from 0, so a longer run repeats what a shorter one has done and goes on; what
fails is printed as bytes that can be pasted into `check`.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.kernel import uapi
from agent.tcp import options
from agent.tcp.stream import MAGIC, MAX_QUEUE, VERSION, Stream
from tests.unit.test_stream import FIELDS, streams

SECONDS = float(os.environ.get("STREAMFERRY_FUZZ_SECONDS", "60"))
STRUCTURED, MUTATED, TRACED = 0.5, 0.3, 0.2  # share of the time that each way of making inputs has

HEADER = MAGIC + bytes([VERSION])
LONGEST_MESSAGE = 300  # characters of an error, however large what it is about
# Memory that an input may take: msgpack nests at most 1024 arrays of at most 128 each, and the
# densest that it makes of a byte is an empty list.
TAKEN, TAKEN_PER_BYTE = 2 << 20, 80

_INTEGERS = (-1, 0, 1, 2, 5, 127, 128, 255, 1 << 16, MAX_QUEUE, (1 << 31) - 1, 1 << 31,
             (1 << 32) - 1, 1 << 32, (1 << 63), (1 << 64) - 1, -(1 << 31), -(1 << 63))  # fmt: skip
_COUNTS = (0, 1, 2, 5, 127, 128, 129, (1 << 16) - 1, MAX_QUEUE, MAX_QUEUE + 1, (1 << 31) - 1,
           (1 << 32) - 1)  # fmt: skip
# First byte and width of the count of each type that has one (the msgpack specification)
_COUNTED = {
    "str": ((0xD9, "B"), (0xDA, "H"), (0xDB, "I")),
    "bin": ((0xC4, "B"), (0xC5, "H"), (0xC6, "I")),
    "ext": ((0xC7, "B"), (0xC8, "H"), (0xC9, "I")),
    "array": ((0xDC, "H"), (0xDD, "I")),
    "map": ((0xDE, "H"), (0xDF, "I")),
}
_WIDEST = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF}


def check(data: bytes) -> None:
    """A stream that can be written and read again, or the one named error, with a short text."""
    try:
        stream = Stream.from_bytes(data)
    except ProtocolError as error:
        assert len(error.message) < LONGEST_MESSAGE
    else:
        assert Stream.from_bytes(stream.to_bytes()) == stream


def valid(**fields: object) -> list[object]:
    """The fields of a stream with something in each of them."""
    stream = Stream(
        inode=77,
        family=socket.AF_INET6,
        state=uapi.TCP_ESTABLISHED,
        local=("fd99::1", 80),
        remote=("fd99::2", 40000),
        send_queue=b"abcdef",
        receive_queue=b"xyz",
        unsent=2,
        urgent=1,
        window=(1, 2, 3, 4, 5),
        options=[
            (one.level, one.number, bytes(one.size) if one.size else 1) for one in options.TABLE
        ],
    )
    wire = stream.to_wire()
    for name, value in fields.items():
        wire[FIELDS.index(name)] = value
    return wire


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def counted(kind: str, width: int, count: int, body: bytes) -> bytes:
    """A value that says it has `count` of what follows, whether or not it has."""
    forms = _COUNTED[kind]
    first, code = forms[width % len(forms)]
    return struct.pack(f">B{code}", first, min(count, _WIDEST[code])) + body


# --- inputs with the structure of a stream, in which some of the parts are something else

scalars = st.one_of(
    st.sampled_from(_INTEGERS),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(["", "10.0.0.1", "fd99::1", "::ffff:10.0.0.1", "10.0.0.1\0", "x" * 65]),
).map(packed)


@st.composite
def lying(draw: st.DrawFn, children: st.SearchStrategy[bytes]) -> bytes:
    kind = draw(st.sampled_from(sorted(_COUNTED)))
    if kind in ("array", "map"):
        parts = draw(st.lists(children, max_size=6))
        count = len(parts) if kind == "array" else len(parts) // 2
        body = b"".join(parts)
    else:
        body = draw(st.binary(max_size=40))
        count = len(body)
        if kind == "ext":
            body = draw(st.binary(min_size=1, max_size=1)) + body  # its type
    if draw(st.booleans()):
        count = draw(st.sampled_from(_COUNTS))
    return counted(kind, draw(st.integers(0, 2)), count, body)


@st.composite
def deep(draw: st.DrawFn) -> bytes:
    """Arrays in arrays, up to and beyond what msgpack takes."""
    depth = draw(st.sampled_from([2, 10, 100, 500, 900, 1000, 1021, 1022, 1023, 1024, 5000]))
    level = draw(st.sampled_from([b"\x91", b"\x81\x01", b"\xdc\0\x01", b"\xdc\0\x80"]))
    return level * depth + draw(scalars)


nodes = st.recursive(scalars | deep(), lying, max_leaves=12)


@st.composite
def structured(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 3)):
        wire = valid()
    else:
        wire = draw(streams()).to_wire()
    parts = [packed(value) for value in wire]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        match draw(st.integers(0, 5)):
            case 0 | 1:
                parts[at] = draw(nodes)
            case 2:
                parts[at] = packed(within(draw, wire[at % len(wire)]))
            case 3:
                parts[at] = parts[draw(st.integers(0, len(parts) - 1))]
            case 4:
                parts[at : at + 1] = [parts[at]] * draw(st.sampled_from([0, 2, 100]))
            case 5:
                parts.insert(at, draw(nodes))
        parts = parts or [b"\x00"]
    count = len(parts) if draw(st.integers(0, 9)) else draw(st.sampled_from(_COUNTS))
    data = HEADER + counted("array", draw(st.integers(0, 1)), count, b"".join(parts))
    match draw(st.integers(0, 11)):
        case 0:
            data = data[: draw(st.integers(0, len(data)))]
        case 1:
            data += draw(st.binary(min_size=1, max_size=20))
        case 2:
            data += data
        case 3:
            data = HEADER + draw(nodes)
        case 4:
            data = draw(st.binary(max_size=200))
        case 5:
            data = HEADER + draw(st.binary(max_size=200))
    return data


def within(draw: st.DrawFn, value: object) -> object:
    """Something in a field's own structure is replaced."""
    if isinstance(value, list | tuple) and value and draw(st.integers(0, 3)):
        items = list(value)
        at = draw(st.integers(0, len(items) - 1))
        if draw(st.booleans()):
            items[at] = within(draw, items[at])
        else:
            items[at : at + 1] = [items[at]] * draw(st.sampled_from([0, 2, 130]))
        return items
    return draw(
        st.sampled_from(_INTEGERS) | st.none() | st.booleans() | st.text(max_size=5)
        | st.binary(max_size=20) | st.floats() | st.just([])
    )  # fmt: skip


def for_a_while(share: float) -> Iterator[int]:
    """Seeds, until the time is up; at least one."""
    end = time.monotonic() + SECONDS * share
    for number in itertools.count():
        yield number
        if time.monotonic() > end:
            return


def run_seeded(number: int, test: Callable[[bytes], None], examples: int) -> None:
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    seed(number)(quiet(given(structured())(test)))()


@pytest.mark.timeout(SECONDS + 600)  # shrinking what has failed takes its time
def test_structured_inputs() -> None:
    for number in for_a_while(STRUCTURED):
        run_seeded(number, check, 500)


# --- valid encodings with bytes changed: far more of them in the same time


def encodings(rng: random.Random) -> list[bytes]:
    """Of streams in every state that has another shape."""
    made = [valid(), valid(send_queue=b"", unsent=0, options=[]), valid(urgent=0)]
    none = ("", 0)
    empty: dict[str, object] = {
        "send_queue": b"", "unsent": 0, "urgent": 0, "window": [], "remote": none
    }  # fmt: skip
    made += [valid(state=one, **empty) for one in (uapi.TCP_LISTEN, uapi.TCP_CLOSE)]
    made.append(valid(family=int(socket.AF_INET), local=("10.0.0.1", 1), remote=("10.0.0.2", 2)))
    made.append(valid(receive_queue=rng.randbytes(3000), options=[]))
    return [HEADER + packed(one) for one in made]


def mutated(rng: random.Random, data: bytes) -> bytes:
    piece = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(piece) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(piece):
            piece[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            piece[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            piece[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 3:
            del piece[at : at + rng.choice((1, 2, 4, 16, 1 << 16))]
        elif kind == 4:
            kind_of = rng.choice(sorted(_COUNTED))
            piece[at : at + 1] = counted(kind_of, rng.randrange(3), rng.choice(_COUNTS), b"")
        elif kind == 5:
            piece[at:at] = piece[at : at + rng.choice((1, 4, 32))] * rng.choice((1, 10, 1000))
        else:
            piece[at:at] = rng.choice((b"\x91", b"\xdc\0\x01")) * rng.choice((10, 1000, 1024))
    return bytes(piece)


@pytest.mark.timeout(SECONDS + 600)
def test_mutated_inputs() -> None:
    for number in for_a_while(MUTATED):
        rng = random.Random(number)
        seeds = encodings(rng)
        for _ in range(1000):
            data = mutated(rng, rng.choice(seeds)) if rng.randrange(20) else rng.randbytes(100)
            try:
                check(data)
            except BaseException as error:
                raise AssertionError(f"seed {number}: check({data!r})") from error


def test_every_truncation_and_every_byte() -> None:
    for data in encodings(random.Random(0)):
        check(data)
        for at in range(min(len(data), 700)):
            with pytest.raises(ProtocolError):
                Stream.from_bytes(data[:at])
            for other in {data[at] ^ 1, data[at] ^ 0x80, 0x00, 0xC1, 0xFF, 0x90, 0xDD}:
                check(data[:at] + bytes([other]) + data[at + 1 :])


# --- memory


def check_memory(data: bytes) -> None:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    check(data)
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < TAKEN + TAKEN_PER_BYTE * len(data), f"{peak - before} bytes"


@pytest.fixture
def _traced() -> Iterator[None]:
    check(HEADER)  # what is imported or cached at first use is not meant
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
@pytest.mark.timeout(SECONDS + 600)
def test_memory_that_an_input_takes() -> None:
    for number in for_a_while(TRACED):
        run_seeded(1_000_000 + number, check_memory, 500)


def claims() -> Iterator[bytes]:
    """Inputs of about 100 bytes that speak of up to 4 GiB, at every place where a count can be."""
    parts = [packed(value) for value in valid(options=[], send_queue=b"", unsent=0)]
    for kind, forms in _COUNTED.items():
        for width, count in itertools.product(range(len(forms)), _COUNTS):
            lie = counted(kind, width, count, b"x" * 30)
            yield HEADER + lie
            yield HEADER + b"\xdc\0\x80" * 20 + lie
            for at in range(len(parts)):
                fields = [*parts[:at], lie, *parts[at + 1 :]]
                yield HEADER + counted("array", 0, len(fields), b"".join(fields))


@pytest.mark.usefixtures("_traced")
def test_claims_take_no_memory() -> None:
    for data in claims():
        assert len(data) < 300
        check_memory(data)


_LIMITED = """
import resource, sys
from tests.unit import test_stream_fuzz as fuzz

fuzz.check(fuzz.HEADER)
inputs = list(fuzz.claims())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
for data in inputs:
    fuzz.check(data)
try:
    bytearray(2 * room)
except MemoryError:
    print(len(inputs))  # the limit is one
"""


def test_claims_in_little_address_space() -> None:
    """Also what tracemalloc does not see."""
    assert resource.RLIMIT_AS
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(32 << 20)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("name", FIELDS)
def test_large_values_in_the_wrong_place(name: str) -> None:
    """Refusing them takes no multiple of what they are; a long queue is also written again."""
    size = 8 << 20
    copies = 5 if name in ("send_queue", "receive_queue") else 3
    for value in (bytes(size), ["\xff" * 60] * 127, [[bytes(size)] * 2] * 3):
        data = HEADER + packed(valid(**{name: value}))
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        check(data)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < TAKEN + copies * len(data)


@pytest.mark.parametrize("levels", [b"\x91", b"\xdc\0\x01", b"\x81\xa0", b"\xdc\0\x80"])
@pytest.mark.parametrize("name", ["inode", "local", "window", "options", "send_queue"])
def test_deep_nesting(name: str, levels: bytes) -> None:
    """The error is about the stream also where its text would be too deep to be made."""
    parts = [packed(value) for value in valid()]
    for depth in (10, 100, 500, *range(900, 1030, 10), 1022, 1023, 1024, 3000):
        parts[FIELDS.index(name)] = levels * depth + b"\0"
        with pytest.raises(ProtocolError) as raised:
            Stream.from_bytes(HEADER + counted("array", 0, len(parts), b"".join(parts)))
        assert len(raised.value.message) < LONGEST_MESSAGE


# --- what is valid


@settings(max_examples=1000, deadline=None)
@given(streams())
def test_every_stream_comes_back(stream: Stream) -> None:
    data = stream.to_bytes()
    received = Stream.from_bytes(data)
    assert packed(received.to_wire()) == packed(stream.to_wire())
    assert received.to_bytes() == data


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 24 << 20])
def test_queues_of_every_size_come_back(size: int) -> None:
    send, receive = random.Random(size).randbytes(size), bytes(size)
    wire = valid(send_queue=send, receive_queue=receive, unsent=size, urgent=size)
    received = Stream.from_bytes(HEADER + packed(wire))
    assert received.send_queue == send and received.receive_queue == receive
    assert received.unsent == received.urgent == size
    assert Stream.from_bytes(memoryview(received.to_bytes())).to_bytes() == received.to_bytes()
