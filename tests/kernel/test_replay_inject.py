"""Packets that the lock dropped, given to TCP after all: segments of a real peer."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.netlock.render import Listener
from agent.tcp.replay import ACK, FIN, RST, SYN, packets_of
from tests.support.agents import Agent, drain_until, payload_of, segments, send_while_locked
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    await_established,
    begin_connect,
    connected,
    listen,
    read_exactly,
    readable,
    retransmits,
    sniffing,
    state,
)

PORT = 6379
SERVICE = {4: "10.99.0.100", 6: "fd99::100"}


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
                packets = agent.await_syns(service)
                assert [one.flags & (SYN | ACK) for one in segments(packets)] == [SYN]
                agent.unlock()
                assert agent.replayer.replay(packets) == 1
                await_established(late)
                assert retransmits(late) == 0
                served, _ = listener.accept()
                served.close()


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
        packets = agent.await_syns(service)
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


def test_speed(pair: tuple[Host, Host], agents: Callable[..., Agent], family: int) -> None:
    """Capture and replay of full-sized segments; a duplicate costs TCP as much as a new one."""
    server, client = pair
    agent = agents(server, [server.address(family)])
    client.ip("link", "set", "eth0", "gso_max_segs", "1")
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
