"""Cutting captured packets into segments: no byte lost, changed or out of order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tcp.replay import (
    ACK,
    CWR,
    FIN,
    PSH,
    RST,
    SEGMENT_PAYLOAD,
    SYN,
    checksum,
    packets_of,
    parse,
)

SOURCE = {4: bytes([10, 77, 0, 13]), 6: bytes.fromhex("fd77" + "00" * 13 + "13")}
DESTINATION = {4: bytes([10, 77, 0, 100]), 6: bytes.fromhex("fd77" + "00" * 12 + "0100")}
TIMESTAMPS = bytes.fromhex("0101080a0000123400005678")


def tcp_packet(
    family: int,
    payload: bytes,
    *,
    flags: int = ACK,
    sequence: int = 1000,
    options: bytes = TIMESTAMPS,
    ip_options: bytes = b"",
    fragment: int = 0x4000,
    jumbo: bool = False,
) -> bytes:
    """A packet whose checksums are rubbish, as they are before the card fills them in."""
    offset = (20 + len(options)) // 4 << 4
    tcp = struct.pack("!HHIIBBHHH", 40000, 6379, sequence, 77, offset, flags, 501, 0xBEEF, 0)
    body = tcp + options + payload
    if family == 4:
        words, length = 5 + len(ip_options) // 4, 20 + len(ip_options) + len(body)
        length = 0 if length > 0xFFFF else length
        header = struct.pack("!BBHHHBBH", 0x40 | words, 0x12, length, 9, fragment, 61, 6, 0xDEAD)
        return header + SOURCE[4] + DESTINATION[4] + ip_options + body
    if jumbo:  # RFC 2675
        body = struct.pack("!BBBBI", 6, 0, 0xC2, 4, len(body) + 8) + body
    length = 0 if len(body) > 0xFFFF or jumbo else len(body)
    header = struct.pack("!IHBB", 0x6120_0042, length, 0 if jumbo else 6, 61)
    return header + SOURCE[6] + DESTINATION[6] + body


def slow_sum(data: bytes) -> int:
    """The ones' complement sum, word by word (RFC 1071 section 1)."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def verify(packet: bytes) -> None:
    """Assert that lengths and checksums are as a receiver wants them."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        assert slow_sum(packet[:header]) == 0xFFFF
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
        addresses = packet[12:20]
    else:
        header = 40
        assert struct.unpack_from("!H", packet, 4)[0] == len(packet) - header
        assert packet[6] == 6
        addresses = packet[8:40]
    body = packet[header:]
    assert slow_sum(addresses + struct.pack("!HH", 6, len(body)) + body) == 0xFFFF


families = st.sampled_from([4, 6])


@given(families, st.binary(max_size=9000), st.integers(1, 4000), st.integers(0, 0xFFFFFFFF))
def test_the_stream_is_kept(family: int, payload: bytes, limit: int, sequence: int) -> None:
    flags = ACK | PSH | FIN | CWR
    segment = parse(tcp_packet(family, payload, flags=flags, sequence=sequence))
    assert segment is not None
    made = list(packets_of(segment, limit))
    expected, stream = sequence, b""
    for number, packet in enumerate(made):
        verify(packet)
        part = parse(packet)
        assert part is not None
        assert struct.unpack_from("!I", part.tcp, 4)[0] == expected
        assert part.tcp[:4] == segment.tcp[:4] and part.tcp[20:] == TIMESTAMPS
        assert len(part.payload) <= limit
        first, last = number == 0, number == len(made) - 1
        assert part.flags == ACK | (PSH | FIN if last else 0) | (CWR if first else 0)
        stream += part.payload
        expected = (expected + len(part.payload)) & 0xFFFFFFFF
    assert stream == payload


@pytest.mark.parametrize("family", [4, 6])
def test_a_small_packet_is_left_whole(family: int) -> None:
    packet = tcp_packet(family, b"x" * 1448)
    segment = parse(packet)
    assert segment is not None
    (made,) = packets_of(segment)
    assert len(made) == len(packet)
    changed = [at for at in range(len(made)) if made[at] != packet[at]]
    start = 20 if family == 4 else 40
    assert set(changed) <= {10, 11, start + 16, start + 17}  # checksums only


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flags", [SYN, ACK, FIN | ACK, RST])
def test_a_segment_without_payload_is_one_packet(family: int, flags: int) -> None:
    segment = parse(tcp_packet(family, b"", flags=flags, options=b""))
    assert segment is not None
    (made,) = packets_of(segment)
    verify(made)
    again = parse(made)
    assert again is not None and again.flags == flags and not again.payload


@pytest.mark.parametrize("jumbo", [False, True])
@pytest.mark.parametrize("family", [4, 6])
def test_packets_larger_than_their_length_field(family: int, jumbo: bool) -> None:
    """BIG TCP: the field is 0, in IPv6 once with a hop-by-hop header and once without."""
    payload = bytes(range(256)) * 700
    segment = parse(tcp_packet(family, payload, jumbo=jumbo and family == 6))
    assert segment is not None and bytes(segment.payload) == payload
    made = list(packets_of(segment))
    assert len(made) == -(-len(payload) // SEGMENT_PAYLOAD)
    for packet in made:
        verify(packet)
        assert len(packet) < 4096 - 320  # with the kernel's own part in one allocation
    parts = [parse(packet) for packet in made]
    assert b"".join(bytes(part.payload) for part in parts if part) == payload


def test_ip_options_stay() -> None:
    segment = parse(tcp_packet(4, b"data" * 1000, ip_options=b"\x94\x04\0\0"))
    assert segment is not None
    for packet in packets_of(segment, 1000):
        verify(packet)
        assert packet[20:24] == b"\x94\x04\0\0"
        assert packet[1] == 0x12 and packet[8] == 61  # traffic class and hops


@pytest.mark.parametrize("family", [4, 6])
def test_what_follows_the_packet_is_no_payload(family: int) -> None:
    segment = parse(tcp_packet(family, b"payload") + b"padding")
    assert segment is not None and bytes(segment.payload) == b"payload"


@pytest.mark.parametrize("fragment", [0x2000, 0x2001, 0x0001, 0x1FFF])
def test_fragments_are_refused(fragment: int) -> None:
    assert parse(tcp_packet(4, b"data", fragment=fragment)) is None


@pytest.mark.parametrize("family", [4, 6])
def test_cut_short_anywhere_is_refused(family: int) -> None:
    packet = tcp_packet(family, b"data")
    for length in range(len(packet)):
        assert parse(packet[:length]) is None, length


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("words", [0, 4, 15])
def test_a_wrong_header_length_is_refused(family: int, words: int) -> None:
    packet = bytearray(tcp_packet(family, b"data"))
    packet[(20 if family == 4 else 40) + 12] = words << 4
    assert parse(bytes(packet)) is None


@pytest.mark.parametrize("words", range(5))
def test_an_ip_header_below_its_least_is_refused(words: int) -> None:
    packet = bytearray(tcp_packet(4, b"\x50" * 60))
    packet[0] = 0x40 | words
    assert parse(bytes(packet)) is None


@given(st.binary(max_size=200))
def test_rubbish_never_raises(data: bytes) -> None:
    for start in (b"", b"\x45", b"\x60", b"\x4f"):
        segment = parse(start + data)
        if segment is not None:
            for packet in packets_of(segment, 7):
                verify(packet)


@given(families, st.binary(max_size=100), st.integers(0, 139), st.integers(0, 255))
def test_one_wrong_byte_never_raises(family: int, data: bytes, at: int, value: int) -> None:
    packet = bytearray(tcp_packet(family, data))
    packet[at % len(packet)] = value
    segment = parse(bytes(packet))
    if segment is not None:
        for made in packets_of(segment, 50):
            verify(made)


@given(st.binary(max_size=3000))
def test_checksum(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert slow_sum(even + checksum(data)) == 0xFFFF


def test_the_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == bytes.fromhex("220d")
    assert checksum(b"") == b"\xff\xff"
    assert checksum(b"\x01") == b"\xfe\xff"  # padded behind, not in front
