"""What is read from the peers' packets, and how a stream is matched with them."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel import uapi
from agent.tcp import wake as wake_module
from agent.tcp.replay import ACK, FIN, PSH, RST, SYN
from agent.tcp.stream import Stream
from agent.tcp.wake import NO_ANSWER, Waking, endpoints, opens, wake

REMOTE, LOCAL = ("10.99.0.2", 40_000), ("10.99.0.1", 6379)
REMOTE6, LOCAL6 = ("fd99::2", 40_001), ("fd99::1", 6380)


def tcp(source: int, destination: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 7, 9, 5 << 4, flags, 100, 0, 0)


def ipv4(flags: int, options: bytes = b"", payload: bytes = b"") -> bytes:
    addresses = socket.inet_aton(REMOTE[0]) + socket.inet_aton(LOCAL[0])
    first = 0x45 + len(options) // 4
    header = struct.pack("!BBHHHBBH", first, 0, 40 + len(options), 0, 0, 64, 6, 0)
    return header + addresses + options + tcp(REMOTE[1], LOCAL[1], flags) + payload


def ipv6(flags: int, jumbo: bool = False) -> bytes:
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, one[0]) for one in (REMOTE6, LOCAL6))
    # Hop-by-hop: next header 6, length 0, option 0xC2 (jumbo payload) of 4 bytes
    between = struct.pack("!BBBBI", 6, 0, 0xC2, 4, 70_000) if jumbo else b""
    header = struct.pack("!IHBB", 6 << 28, 20, 0 if jumbo else 6, 64)
    return header + addresses + between + tcp(REMOTE6[1], LOCAL6[1], flags)


def waking(local: tuple[str, int], remote: tuple[str, int], state: int = 1) -> Any:
    """A `Waking` whose socket is a mock."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    stream = Stream(1, family, state, local, remote)
    return Waking(mock.create_autospec(socket.socket, instance=True), stream)


@pytest.mark.parametrize("flags", [ACK, SYN, FIN | ACK, PSH | ACK])
def test_packets_find_their_stream(flags: int) -> None:
    assert endpoints(ipv4(flags)) == waking(LOCAL, REMOTE).key
    assert endpoints(ipv4(flags, b"\1" * 8, b"data")) == waking(LOCAL, REMOTE).key
    assert endpoints(ipv6(flags)) == waking(LOCAL6, REMOTE6).key
    assert endpoints(ipv6(flags, jumbo=True)) == waking(LOCAL6, REMOTE6).key


def test_mapped_addresses_are_ipv4_on_the_wire() -> None:
    mapped = waking(("::ffff:10.99.0.1", LOCAL[1]), ("::ffff:10.99.0.2", REMOTE[1]))
    assert mapped.key == endpoints(ipv4(ACK))


def test_what_opens_a_connection() -> None:
    for flags, expected in ((SYN, True), (SYN | 0xC0, True), (SYN | ACK, False), (ACK, False),
                            (FIN, False), (RST | ACK, False), (PSH | ACK, False)):  # fmt: skip
        for packet in (ipv4(flags), ipv4(flags, b"\1" * 4), ipv6(flags), ipv6(flags, jumbo=True)):
            assert opens(packet) == expected


@given(st.binary(max_size=60))
def test_no_packet_is_too_strange(packet: bytes) -> None:
    assert len(endpoints(packet)) in (0, 12, 36)
    assert opens(packet) in (True, False)


def test_packets_cut_short() -> None:
    for packet in (ipv4(SYN, b"\1" * 8), ipv6(SYN), ipv6(SYN, jumbo=True)):
        for end in range(len(packet) - 16):
            assert endpoints(packet[:end]) == b""
            assert not opens(packet[:end])


def test_in_fin_wait2_there_is_nobody_to_wake() -> None:
    one = waking(LOCAL, REMOTE, uapi.TCP_FIN_WAIT2)
    one.begin()
    assert one.awake and (one.wake_ms, one.probes) == (0.0, 0)
    asyncio.run(wake([one]))
    one.sock.close.assert_called_once()


def segments(one: Any, count: int) -> None:
    info = bytearray(uapi.TCP_INFO_SIZE)
    struct.pack_into("=I", info, uapi.TCP_INFO_SEGS_IN_OFFSET, count)
    info[0] = uapi.TCP_ESTABLISHED
    one.sock.getsockopt.return_value = bytes(info)


def test_segments_of_our_own_are_no_answer() -> None:
    one = waking(LOCAL, REMOTE, uapi.TCP_CLOSE_WAIT)
    segments(one, 1)  # the peer's FIN, injected
    one.begin()
    one.look()
    assert one.report()["wake_ms"] == NO_ANSWER
    segments(one, 3)  # replayed
    one.disregard()
    one.look()
    assert not one.awake
    segments(one, 4)
    one.look()
    assert one.awake
    one.disregard()  # the socket is closed by now
    one.sock.getsockopt.side_effect = OSError
    one.look()


def test_probes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_module, "_PROBES_AT", (0.0, 0.001, 0.002))
    monkeypatch.setattr(wake_module, "GIVE_UP", 0.1)
    one = waking(LOCAL, REMOTE)
    segments(one, 0)
    asyncio.run(wake([one]))
    assert (one.awake, one.probes) == (False, 4)
    one.sock.close.assert_not_called()


def test_who_was_released_in_silence_is_probed_unless_awake() -> None:
    awake, asleep = waking(LOCAL, REMOTE), waking(LOCAL, REMOTE)
    for one, count in ((awake, 1), (asleep, 0)):
        one.probes = 0
        segments(one, count)
        one.begin()
    asleep.sock.setsockopt.side_effect = lambda *_: segments(asleep, 1)  # it answers
    asyncio.run(wake([awake, asleep]))
    assert awake.awake and awake.probes == 0
    assert asleep.awake and asleep.probes == 1
