"""Packets that the lock dropped, given to TCP after all: with real segments of a real peer."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.netlock.render import Connection, Listener
from agent.tcp.capture import Capture
from agent.tcp.replay import ACK, FIN, RST, SYN, Replayer, Segment, checksum, packets_of, parse
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    Pair,
    await_established,
    begin_connect,
    connect,
    connected,
    listen,
    ports,
    read_exactly,
    readable,
    retransmits,
    sniffing,
    state,
)

ID = "20261123-134501-7f3a9c"
PORT = 6379
SERVICE = {4: "10.99.0.100", 6: "fd99::100"}


class Agent:
    """Lock, capture and replayer on one host, as an agent has them."""

    def __init__(self, host: Host, addresses: list[str], **options: Any) -> None:
        self._host = host
        self._nftables = host.run(Nftables)
        self.capture = host.run(Capture, addresses, **options)
        self.replayer = host.run(Replayer)

    def lock(self, *connections: Connection, listeners: tuple[Listener, ...] = ()) -> None:
        self._run(render.lock(ID, connections, listeners, stage="full"))

    def unlock(self) -> None:
        self._run(render.unlock(ID))

    def _run(self, script: str) -> None:
        self._host.run(self._nftables.run, script)

    def close(self) -> None:
        self._nftables.close()
        self.capture.close()
        self.replayer.close()


@pytest.fixture
def agents() -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(host: Host, addresses: list[str], **options: Any) -> Agent:
        made.append(Agent(host, addresses, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def drain_until(agent: Agent, connection: Connection, enough: Callable[[list[Segment]], bool]
                ) -> list[bytes]:  # fmt: skip
    packets: list[bytes] = []

    def look() -> bool:
        packets.extend(agent.capture.drain({connection}, ()))
        return enough(segments(packets))

    wait_until("enough was captured", look)
    return packets


def segments(packets: list[bytes]) -> list[Segment]:
    parsed = [parse(one) for one in packets]
    return [one for one in parsed if one is not None]


def payload_of(packets: list[bytes]) -> bytes:
    """The stream in captured packets; asserts that nothing is missing."""
    pieces: dict[int, bytes] = {}
    for one in segments(packets):
        (sequence,) = struct.unpack_from("!I", one.tcp, 4)
        pieces[sequence] = max(pieces.get(sequence, b""), bytes(one.payload), key=len)
    start = min(pieces)
    stream = b""
    for sequence in sorted(pieces):
        offset = sequence - start
        assert offset <= len(stream), "a hole in what was captured"
        stream = stream[:offset] + pieces[sequence] + stream[offset + len(pieces[sequence]) :]
    return stream


def send_while_locked(agent: Agent, pair: Pair, data: bytes) -> list[bytes]:
    """What is captured of `data`, as far as the peer's window lets it send."""
    connection = pair.connection()
    agent.lock(connection)
    agent.capture.drain(set(), ())  # what has been delivered already
    pair.client.setblocking(False)
    assert pair.client.send(data) == len(data)
    return drain_until(agent, connection, lambda found: retransmits(pair.client) >= 1)


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_what_was_locked_out_arrives_by_replay(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int, rp_filter: int
) -> None:
    """All bytes in flight come from the replay, before the peer's timer runs out again."""
    server, client = pair
    for name in ("all", "default", "lo", "eth0"):
        server.sysctl(f"net/ipv4/conf/{name}/rp_filter", rp_filter)
        server.sysctl(f"net/ipv4/conf/{name}/accept_local", 0)
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held:
        data = os.urandom(12_000)  # below the initial window: all of it is sent
        packets = send_while_locked(agent, held, data)
        assert payload_of(packets) == data
        assert not readable(held.server)
        # The lock still holds: what arrives now can only be ours, which it lets through.
        assert agent.replayer.replay(packets) == len(packets)
        assert read_exactly(held.server, len(data)) == data
        agent.unlock()
        held.server.sendall(b"answer")
        assert read_exactly(held.client, 6) == b"answer"
        wait_until("all is acknowledged", lambda: outstanding(held.client) == 0)


def outstanding(sock: socket.socket) -> int:
    """Bytes sent that the peer has not acknowledged."""
    return ioctl_int(sock.fileno(), uapi.SIOCOUTQ)


def test_large_packets_are_captured_and_cut(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """The peer's card has merged segments (here: not cut them); none has its checksum yet."""
    server, client = pair
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held:
        warm = os.urandom(2 << 20)  # so that the window allows for much in flight
        received = []
        for start in range(0, len(warm), 1 << 16):
            held.client.sendall(warm[start : start + (1 << 16)])
            received.append(read_exactly(held.server, 1 << 16))
        assert b"".join(received) == warm
        data = os.urandom(100_000)
        packets = send_while_locked(agent, held, data)
        assert max(map(len, packets)) > 20_000
        sent = payload_of(packets)  # as much as the window allowed for
        assert len(sent) > 30_000 and sent == data[: len(sent)]
        agent.replayer.replay(packets)
        assert read_exactly(held.server, len(sent)) == sent
        agent.unlock()
        assert read_exactly(held.server, len(data) - len(sent)) == data[len(sent) :]


def test_duplicates_and_an_end_are_harmless(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    server, client = pair
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held, sniffing(client) as wire:
        agent.lock(held.connection())
        held.client.sendall(b"the last words")
        held.client.shutdown(socket.SHUT_WR)
        packets = drain_until(
            agent, held.connection(), lambda found: any(one.flags & FIN for one in found)
        )
        agent.unlock()
        for _ in range(3):
            assert agent.replayer.replay(packets) == len(packets)
        assert read_exactly(held.server, 14) == b"the last words"
        assert held.server.recv(1) == b""
        held.server.sendall(b"heard")
        assert read_exactly(held.client, 5) == b"heard"
        assert not [one for one in wire.segments(outgoing=False) if one.flags & RST]


def test_a_syn_is_replayed_to_its_listener(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """A client that came in the blackout is answered before its timer (1 s) runs out."""
    server, client = pair
    address = server.address(family)
    agent = agents(server, [address])
    with listen(server, address, PORT) as listener:
        for service in (Listener(family, address, PORT), Listener(family, None, PORT)):
            agent.lock(listeners=(service,))
            with begin_connect(client, address, PORT) as late:
                packets: list[bytes] = []
                wait_until("the SYN was captured",
                           lambda into=packets, to=service: into.extend(  # type: ignore[misc]
                               agent.capture.drain(set(), [to])) or into)  # fmt: skip
                assert [one.flags & (SYN | ACK) for one in segments(packets)] == [SYN]
                agent.unlock()
                assert agent.replayer.replay(packets) == 1
                await_established(late)
                assert retransmits(late) == 0
                served, _ = listener.accept()
                served.close()


def test_only_what_was_asked_for_is_kept(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    server, client = pair
    address = server.address(family)
    agent = agents(server, [address])
    other = {4: "10.99.0.77", 6: "fd99::77"}[family]
    server.add_address(other)
    with listen(server, address, PORT) as listener, listen(server, other, PORT) as elsewhere:
        one, two, three = (connect(client, to) for to in (listener, listener, elsewhere))
        for number, held in enumerate((one, two, three)):
            held.client.sendall(b"%d" % number)
            assert read_exactly(held.server, 1) == b"%d" % number
            held.server.sendall(b"!")
            assert read_exactly(held.client, 1) == b"!"
        packets = agent.capture.drain({one.connection(), three.connection()}, ())
        client_port = one.client.getsockname()[1]
        assert packets and {ports(item) for item in segments(packets)} == {(client_port, PORT)}
        # What was not wanted is forgotten.
        assert agent.capture.drain({two.connection()}, [Listener(family, None, PORT)]) == []
        # The address of the other listener is not captured at all, whatever is asked for.
        third = connect(client, elsewhere)
        assert agent.capture.drain({third.connection()}, [Listener(family, other, PORT)]) == []
        for held in (one, two, three, third):
            held.close()


def test_packets_arrive_where_the_address_is_not_yet(
    trio: tuple[Host, Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """As on a destination between the announcement and the address being usable."""
    _, destination, client = trio
    address = SERVICE[family]
    agent = agents(destination, [address])
    client.ip("neighbour", "replace", address, "lladdr", destination.mac(), "dev", "eth0",
              "nud", "permanent")  # fmt: skip
    service = Listener(family, address, PORT)
    with begin_connect(client, address, PORT) as late, sniffing(client) as wire:
        packets: list[bytes] = []
        wait_until("the SYN was captured",
                   lambda: packets.extend(agent.capture.drain(set(), [service])) or packets)  # type: ignore[func-returns-value]  # fmt: skip
        # Not local: nothing is injected, and nothing is sent on.
        wire.segments(outgoing=False)
        assert agent.replayer.replay(packets) == 0
        assert wire.segments(outgoing=False) == []
        destination.add_address(address)
        with listen(destination, address, PORT) as listener:
            assert agent.replayer.replay(packets) == len(packets)
            await_established(late)
            listener.accept()[0].close()


def test_resets_and_rubbish_are_left_out(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    server, client = pair
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held:
        connection = held.connection()
        agent.lock(connection)
        held.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        held.client.close()
        packets = drain_until(
            agent, connection, lambda found: any(one.flags & RST for one in found)
        )
        agent.unlock()
        resets = [one for one in packets if segments([one])[0].flags & RST]
        assert agent.replayer.replay([*resets, b"", b"rubbish", resets[0][:30]]) == 0
        assert state(held.server) == uapi.TCP_ESTABLISHED


def test_padding_is_cut_off(pair: tuple[Host, Host], agents: Callable[..., Agent]) -> None:
    """Ethernet frames have at least 60 bytes; a short segment comes with rubbish behind it."""
    server, client = pair
    agent = agents(server, [server.address4])
    with connected(server, client, 4) as held:
        agent.lock(held.connection())
        held.client.sendall(b"x")
        (packet, *_) = drain_until(
            agent, held.connection(), lambda found: any(one.payload for one in found)
        )
        frame = bytes.fromhex((server.mac() + client.mac()).replace(":", "")) + b"\x08\x00"
        raw = client.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind(("eth0", 0))
        raw.send(frame + packet + b"PADDING")
        raw.close()

        def again() -> bool:
            return packet in agent.capture.drain({held.connection()}, ())

        wait_until("it came back without its padding", again)


def test_fragments_and_others_are_not_captured(
    pair: tuple[Host, Host], agents: Callable[..., Agent]
) -> None:
    server, client = pair
    agent = agents(server, [server.address4])
    listener = Listener(4, None, PORT)
    syn = struct.pack("!HHIIBBHHH", 4000, PORT, 1, 0, 0x50, SYN, 1000, 0, 0)
    addresses = socket.inet_aton(client.address4) + socket.inet_aton(server.address4)

    def packet(fragment: int, protocol: int) -> bytes:
        start = struct.pack("!BBHHHBB", 0x45, 0, 40, 1, fragment, 64, protocol)
        # With a valid checksum: a bridge may be made to look at it (br_netfilter).
        return start + checksum(start + b"\0\0" + addresses) + addresses + syn

    frame = bytes.fromhex((server.mac() + client.mac()).replace(":", "")) + b"\x08\x00"
    elsewhere = bytes.fromhex("0200000000aa" + client.mac().replace(":", "")) + b"\x08\x00"
    raw = client.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind(("eth0", 0))
    server.ip("link", "set", "eth0", "promisc", "on")
    raw.send(frame + packet(0x2000, 6))  # more fragments
    raw.send(frame + packet(0x0008, 6))  # a later one
    raw.send(frame + packet(0, 17))  # not TCP
    raw.send(elsewhere + packet(0, 6))  # for another host's card
    raw.send(frame + packet(0x4000, 6))  # don't fragment: the one that counts
    raw.close()
    found: list[bytes] = []
    wait_until("one was captured",
               lambda: found.extend(agent.capture.drain(set(), [listener])) or found)  # type: ignore[func-returns-value]  # fmt: skip
    assert [one[6:8] for one in found] == [b"\x40\x00"]


def test_a_bridge_shows_a_packet_once(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """The service's address is at a bridge whose port the packets come in by."""
    server, client = pair
    address = SERVICE[family]
    server.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    server.ip("link", "set", "br0", "addrgenmode", "none", "up")
    server.ip("address", "flush", "dev", "eth0")
    server.ip("link", "set", "eth0", "master", "br0")
    options = ("nodad",) if family == 6 else ()
    prefix = {4: 24, 6: 64}[family]
    server.ip("address", "add", f"{address}/{prefix}", "dev", "br0", *options)
    agent = agents(server, [address])
    with listen(server, address, PORT) as listener:
        held = connect(client, listener)
        syns = agent.capture.drain(set(), [Listener(family, address, PORT)])
        assert len(syns) == 1
        held.close()


def test_many_addresses_in_one_filter(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """As many as a plan may have; the last one is found, too."""
    server, client = pair
    text = {4: "192.0.2.{}", 6: "2001:db8::{:x}"}[family]
    both = ["198.51.100.1", "2001:db8:1::1"]
    agent = agents(server, [*map(text.format, range(253)), *both, server.address(family)])
    with connected(server, client, family, PORT) as held:
        found = agent.capture.drain(set(), [Listener(family, None, PORT)])
        assert len(found) == 1
        assert held.connection().local == server.address(family)


def test_lost_packets_are_counted(pair: tuple[Host, Host], agents: Callable[..., Agent]) -> None:
    server, client = pair
    agent = agents(server, [server.address4], buffer=4096)
    with connected(server, client, 4) as held:
        assert agent.capture.dropped() >= 0
        before = agent.capture.dropped()
        data = os.urandom(1 << 18)
        for start in range(0, len(data), 1 << 14):
            held.client.sendall(data[start : start + (1 << 14)])
            read_exactly(held.server, 1 << 14)
        assert agent.capture.dropped() > before
        assert agent.capture.dropped() >= before  # added up, though the kernel starts at 0 again
    agent.capture.close()
    agent.capture.close()
    agent.replayer.close()
    agent.replayer.close()


def test_speed(pair: tuple[Host, Host], agents: Callable[..., Agent], family: int) -> None:
    """Capture and replay of full-sized segments; a duplicate costs TCP as much as a new one."""
    server, client = pair
    agent = agents(server, [server.address(family)])
    client.command("ethtool", "-K", "eth0", "tso", "off", "gso", "off")
    with connected(server, client, family) as held:
        packets = send_while_locked(agent, held, os.urandom(1448 * 8))
        packets = [one for one in packets if len(one) > 1400]
        agent.unlock()
        many = list(itertools.islice(itertools.cycle(packets), 2000))
        start = time.perf_counter()
        assert agent.replayer.replay(many) == len(many)
        took = (time.perf_counter() - start) / len(many)
        print(f"replay: {took * 1e6:.1f} us a packet")
        assert took < 200e-6  # 15 to 20 us on an idle machine
        with contextlib.suppress(BlockingIOError):
            held.server.recv(1 << 16)


def test_what_we_inject_is_not_captured_again(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int
) -> None:
    """Bytes that no peer ever sent reach the socket, but not the capture: no replay of a replay."""
    server, client = pair
    agent = agents(server, [server.address(family)])
    with connected(server, client, family) as held:
        (packet, *_) = send_while_locked(agent, held, b"from the peer")
        segment = segments([packet])[0]
        assert bytes(segment.payload) == b"from the peer"
        segment.payload = memoryview(b"from the test")
        assert agent.replayer.replay(list(packets_of(segment, 5))) == 3
        assert read_exactly(held.server, 13) == b"from the test"
        captured = agent.capture.drain({held.connection()}, ())
        assert {bytes(one.payload) for one in segments(captured)} <= {b"from the peer"}
