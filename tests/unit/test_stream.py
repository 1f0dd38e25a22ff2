"""A stream's wire form: whatever is malformed is refused, and what passes is what was sent."""

from __future__ import annotations

import dataclasses
import errno
import socket
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.image.records import IMAGE_VERSION
from agent.kernel import uapi
from agent.tcp import options
from agent.tcp.fins import FINS
from agent.tcp.stream import ALONE, MAGIC, MAX_QUEUE, VERSION, Stream, format_address

FIELDS = [field.name for field in dataclasses.fields(Stream)]
# Of each integer: the largest value that passes
LARGEST = {
    "inode": (1 << 64) - 1,
    "scope": (1 << 32) - 1,
    "send_seq": (1 << 32) - 1,
    "receive_seq": (1 << 32) - 1,
    "mss": (1 << 16) - 1,
    "negotiated": 255,
    "send_scale": 14,
    "receive_scale": 14,
    "timestamp": (1 << 32) - 1,
    "rtt": (1 << 32) - 1,
    "send_buffer": (1 << 31) - 1,
    "receive_buffer": (1 << 31) - 1,
    "buffer_locks": 3,
    "backlog": (1 << 31) - 1,
    "nonblocking": 1,
    "window_clamp": (1 << 31) - 1,
    "read_shut": 1,
}
OTHERS = set(FIELDS) - LARGEST.keys()  # each has a test of its own

uint16 = st.integers(0, (1 << 16) - 1)
uint32 = st.integers(0, (1 << 32) - 1)


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, int, options.OptionValue]:
    option = draw(st.sampled_from(options.TABLE))
    if option.size:
        least, most = min(option.lengths, default=0), min(option.lengths, default=option.size)
        return option.level, option.number, draw(st.binary(min_size=least, max_size=most))
    return option.level, option.number, draw(st.integers(option.least, option.most))


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    family = draw(st.sampled_from([socket.AF_INET, socket.AF_INET6]))
    state = draw(st.sampled_from([*FINS, uapi.TCP_SYN_SENT, *ALONE]))
    alone = state in ALONE
    addresses = st.ip_addresses(v=4 if family == socket.AF_INET else 6).map(str)
    send_queue = b"" if alone else draw(st.binary(max_size=50))
    receive_queue = draw(st.binary(max_size=50))
    return Stream(
        family=int(family),
        state=state,
        local=(draw(addresses), draw(uint16)),
        remote=("", 0) if alone else (draw(addresses), draw(uint16)),
        send_queue=send_queue,
        receive_queue=receive_queue,
        unsent=draw(st.integers(0, len(send_queue))),
        window=() if alone else draw(st.tuples(*[uint32] * 5)),
        urgent=0 if alone else draw(st.integers(0, len(receive_queue))),
        error=draw(st.sampled_from([0, errno.ECONNRESET])),
        options=draw(st.lists(rows(), max_size=10)),
        **{name: draw(st.integers(0, largest)) for name, largest in LARGEST.items()},
    )


def packed(wire: object) -> Any:
    """As it arrives."""
    return msgpack.unpackb(msgpack.packb(wire))


def example() -> Stream:
    return Stream(
        inode=77,
        family=socket.AF_INET,
        state=uapi.TCP_ESTABLISHED,
        local=("10.0.0.1", 80),
        remote=("10.0.0.2", 4000),
        send_queue=b"abcdef",
        unsent=2,
        window=(1, 2, 3, 4, 5),
        options=[(socket.SOL_SOCKET, uapi.SO_KEEPALIVE, 1)],
    )


def with_field(name: str, value: object) -> list[Any]:
    wire = packed(example().to_wire())
    wire[FIELDS.index(name)] = value
    return list(wire)


def refused(wire: object, named: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        Stream.from_wire(wire)
    assert named in raised.value.message
    assert len(raised.value.message) < 300


@given(streams())
def test_round_trip(stream: Stream) -> None:
    received = Stream.from_wire(packed(stream.to_wire()))
    received.window = tuple(received.window)
    received.options = [(level, number, value) for level, number, value in received.options]
    assert received == stream


def test_every_field_is_tested() -> None:
    assert OTHERS == {
        *("family", "state", "local", "remote", "send_queue", "receive_queue", "unsent"),
        *("window", "urgent", "error", "options"),
    }


@pytest.mark.parametrize("name", LARGEST)
def test_bounds_of_integers(name: str) -> None:
    for value in (0, 1, LARGEST[name]):
        assert getattr(Stream.from_wire(with_field(name, value)), name) == value
    wrong: list[object] = [-1, LARGEST[name] + 1, 1 << 70, True, 1.0, "1", b"1", None, [1]]
    for one in wrong:
        refused(with_field(name, one), name)


@given(st.sampled_from(FIELDS), st.none() | st.booleans() | st.floats() | st.text(max_size=5))
def test_no_field_is_of_such_a_type(name: str, value: object) -> None:
    refused(with_field(name, value), name)


@given(
    st.sampled_from(FIELDS),
    st.recursive(
        st.none() | st.integers() | st.binary() | st.text(),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    ),
)
def test_nothing_else_is_raised(name: str, value: object) -> None:
    try:
        Stream.from_wire(with_field(name, value))
    except ProtocolError as error:
        assert len(error.message) < 300


@pytest.mark.parametrize(
    "wire", [None, 7, {}, b"", (), [], [0] * (len(FIELDS) - 1), [0] * (len(FIELDS) + 1)]
)
def test_not_a_row_of_fields(wire: object) -> None:
    refused(wire, "number of fields")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("family", [0, 1, socket.AF_UNIX, 17, -2, "2", 2.0]),
        ("state", [0, uapi.TCP_SYN_RECV, uapi.TCP_TIME_WAIT, 12, 99, "1", 1.0]),
        ("send_queue", ["text", [1], None, bytearray(2)]),
        ("receive_queue", ["text", [1], None]),
        ("unsent", [-1, 7, MAX_QUEUE + 1, "2"]),
        ("urgent", [-1, 1, MAX_QUEUE + 1, "2"]),
        ("error", [-1, errno.EPIPE, 1 << 40, "104"]),
        ("window", [[1], [1] * 6, [1, 2, 3, 4, -5], [1, 2, 3, 4, 1 << 32], b"12345", 5]),
        ("options", [{}, 7, b"", [1], [[1, 2]], [[1, 2, 3, 4]]]),
    ],
)  # fmt: skip
def test_malformed_fields(name: str, values: list[object]) -> None:
    for value in values:
        refused(with_field(name, value), name)


@pytest.mark.parametrize("name", ["local", "remote"])
def test_malformed_addresses(name: str) -> None:
    for value in ([], ["10.0.0.1"], ["10.0.0.1", 80, 0], [80, "10.0.0.1"], "10.0.0.1:80",
                  ["10.0.0.1", -1], ["10.0.0.1", 65536], ["10.0.0.1", True]):  # fmt: skip
        refused(with_field(name, value), name)
    for host in (
        "",
        "fd99::1",
        "localhost",
        "10.0.0",
        "10.0.0.1 ",
        "10.0.0.1\0",
        "0x7f.1",
        "\ud800",
    ):
        refused(with_field(name, [host, 80]), f"{name} address")


def test_addresses_are_of_the_family() -> None:
    wire = with_field("family", socket.AF_INET6)
    refused(wire, "local address")
    wire[FIELDS.index("local")] = ["::ffff:10.0.0.1", 80]
    refused(wire, "remote address")
    wire[FIELDS.index("remote")] = ["fe80::1", 80]
    assert Stream.from_wire(wire).remote == ("fe80::1", 80)
    wire[FIELDS.index("remote")] = ["fe80::1%eth0", 80]
    refused(wire, "remote address")


@pytest.mark.parametrize("state", sorted(ALONE))
def test_a_listening_or_closed_one_has_no_peer(state: int) -> None:
    wire = with_field("state", state)
    refused(wire, "remote address")
    wire[FIELDS.index("remote")] = ["", 0]
    refused(wire, "window")
    wire[FIELDS.index("window")] = []
    refused(wire, "queues")
    wire[FIELDS.index("send_queue")] = b""
    refused(wire, "unsent")
    wire[FIELDS.index("unsent")] = 0
    assert Stream.from_wire(wire).state == state
    refused(with_field("window", []), "window")


@given(streams())
def test_bytes_round_trip(stream: Stream) -> None:
    data = stream.to_bytes()
    assert data.startswith(MAGIC)
    received = Stream.from_bytes(data)
    received.window = tuple(received.window)
    received.options = [tuple(row) for row in received.options]
    assert received == stream
    for other in (bytearray(data), memoryview(data)):
        assert Stream.from_bytes(other).name == stream.name


def test_other_fields_are_another_version() -> None:
    """Both versions tell apart what cannot read each other; who changes the fields raises them."""
    fields = (
        "inode family state local remote scope send_seq receive_seq send_queue receive_queue "
        "unsent mss negotiated send_scale receive_scale timestamp rtt window send_buffer "
        "receive_buffer buffer_locks backlog nonblocking window_clamp urgent read_shut error "
        "options"
    )
    assert " ".join(Stream.__dataclass_fields__) == fields
    assert (VERSION, IMAGE_VERSION) == (2, 4)


def test_other_bytes() -> None:
    data = example().to_bytes()
    body = data[len(MAGIC) + 1 :]
    for wrong, words in [
        (b"", "begins with b''"),
        (MAGIC, "begins with"),
        (b"GET / HTTP/1.1", "begins with b'GET / HT'"),
        (MAGIC + bytes([VERSION + 1]) + body, f"version {VERSION + 1}, where {VERSION}"),
        (data[:-1], "not msgpack"),
        (data + b"\0", "not msgpack"),
        (MAGIC + bytes([VERSION]) + b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (MAGIC + bytes([VERSION]) + b"\x80", "number of fields"),
    ]:
        with pytest.raises(ProtocolError) as raised:
            Stream.from_bytes(wrong)
        assert words in raised.value.message


@pytest.mark.parametrize(
    "row",
    [
        [socket.SOL_SOCKET, uapi.SO_SNDBUFFORCE, 1],  # not of the table
        [socket.IPPROTO_TCP, uapi.TCP_REPAIR, 1],
        [socket.SOL_SOCKET, uapi.SO_KEEPALIVE, 1 << 31],  # no int
        [socket.SOL_SOCKET, uapi.SO_KEEPALIVE, -(1 << 31) - 1],
        [socket.SOL_SOCKET, uapi.SO_KEEPALIVE, b"\1\0\0\0"],  # of the wrong kind
        [socket.SOL_SOCKET, uapi.SO_KEEPALIVE, True],
        [socket.SOL_SOCKET, uapi.SO_LINGER, 1],
        [socket.SOL_SOCKET, uapi.SO_LINGER, bytes(9)],  # too long
        [socket.IPPROTO_TCP, uapi.TCP_CONGESTION, "reno"],
        ["1", uapi.SO_KEEPALIVE, 1],
        [socket.SOL_SOCKET, -1, 1],
    ],
)
def test_options_that_no_socket_has(row: list[object]) -> None:
    refused(with_field("options", [row]), "options")


def test_too_many_options() -> None:
    row = [socket.SOL_SOCKET, uapi.SO_KEEPALIVE, 1]
    assert len(Stream.from_wire(with_field("options", [row] * 127)).options) == 127
    refused(with_field("options", [row] * 128), "options")


def test_names() -> None:
    assert example().name == "10.0.0.1:80-10.0.0.2:4000"
    assert format_address(("fd99::1", 80)) == "[fd99::1]:80"
