"""Frames of the control protocol, fed whole, byte by byte, and with what follows."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.wire.frames import MAX_FRAME, FrameDecoder, Message, decode_body, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(max_size=12), VALUES, max_size=5)


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_fed_whole(messages: list[Message]) -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(b"".join(map(encode, messages)))) == messages
    assert decoder.pending == 0


@given(st.lists(MESSAGES, min_size=1, max_size=3))
def test_fed_byte_by_byte(messages: list[Message]) -> None:
    decoder = FrameDecoder()
    received: list[Message] = []
    for byte in b"".join(map(encode, messages)):
        received += decoder.feed(bytes([byte]))
    assert received == messages
    assert decoder.pending == 0


@given(MESSAGES, MESSAGES, st.data())
def test_fed_with_the_start_of_the_next(first: Message, second: Message, data: Any) -> None:
    whole, follows = encode(first), encode(second)
    cut = data.draw(st.integers(0, len(follows) - 1))
    decoder = FrameDecoder()
    assert list(decoder.feed(whole + follows[:cut])) == [first]
    assert decoder.pending == cut  # not 0 at the end of input: the frame is cut off
    assert list(decoder.feed(follows[cut:])) == [second]


@given(st.binary(max_size=200))
def test_anything_else_is_refused_as_such(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        for message in decoder.feed(data):
            assert all(isinstance(key, str) for key in message)
    except ProtocolError as error:
        assert error.message


@given(st.binary(max_size=100))
def test_a_body_that_is_not_a_map_is_refused_as_such(body: bytes) -> None:
    try:
        assert isinstance(decode_body(body), dict)
    except ProtocolError as error:
        assert error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        msgpack.packb([1, 2]),
        msgpack.packb("text"),
        msgpack.packb({1: "a number as a key"}),
        msgpack.packb({"a": 1}) + b"\x01",  # something behind it
        msgpack.packb({"a": 1})[:-1],
        b"\x81\xa1a\xc1",  # 0xc1 is never used
        b"\x81\xa1a\x81\x90\x01",  # a list as a key
        b"\x81\xa1a\xa1\xff",  # not UTF-8
        b"\x81\xa1a" + msgpack.packb(msgpack.ExtType(5, b"x")),
        b"\x81\xa1a" + msgpack.packb(msgpack.Timestamp(1, 1)),
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of 4294967295
        b"\x81\xa1a\xc6\x7f\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 2000,
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameDecoder().feed(framed(body)))


@given(st.lists(MESSAGES, max_size=3), st.booleans())
def test_what_was_before_something_malformed_is_not_lost(
    messages: list[Message], whole: bool
) -> None:
    data = b"".join(map(encode, messages)) + b"Broadcast message from root"
    decoder = FrameDecoder()
    received: list[Message] = []
    with pytest.raises(ProtocolError):
        for piece in [data] if whole else [bytes([byte]) for byte in data]:
            for message in decoder.feed(piece):
                received.append(message)
    assert received == messages


def test_a_length_over_the_limit_is_refused_before_the_body_comes() -> None:
    with pytest.raises(ProtocolError, match=str(MAX_FRAME + 1)):
        list(FrameDecoder().feed(struct.pack("!I", MAX_FRAME + 1)))


def test_what_a_shell_prints_is_quoted_in_the_error() -> None:
    with pytest.raises(ProtocolError, match="Welcome to src"):
        list(FrameDecoder().feed(b"Welcome to src\n"))


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        encode({"data": bytes(MAX_FRAME)})


def test_the_largest_message_arrives() -> None:
    body = msgpack.packb({"data": b""})
    message = {"data": bytes(MAX_FRAME - len(body) - 4)}
    assert list(FrameDecoder().feed(encode(message))) == [message]


def test_names_that_are_not_unicode_become_escapes() -> None:
    """A file name of a process is bytes; Python has those that are not UTF-8 as surrogates."""
    name = b"/srv/\xff".decode("utf-8", "surrogateescape")
    (received,) = FrameDecoder().feed(encode({"path": name}))
    assert received == {"path": "/srv/\\udcff"}
