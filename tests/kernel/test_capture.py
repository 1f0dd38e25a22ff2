"""What the capture keeps of a real peer's packets, and what it leaves."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

from agent.netlock.render import Listener
from agent.tcp.replay import SYN, checksum
from tests.support.agents import Agent, drain_until, segments
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    connect,
    connected,
    listen,
    ports,
    read_exactly,
)

PORT = 6379
SERVICE = {4: "10.99.0.100", 6: "fd99::100"}


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
    found = agent.await_syns(listener)
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
