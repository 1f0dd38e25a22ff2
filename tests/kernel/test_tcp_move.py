"""Connections move, with whatever is in their queues, and both ends see one stream of bytes."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import connect_unspecified, ioctl_int
from agent.tcp.closing import settle
from agent.tcp.dumping import dump
from agent.tcp.inventory import connection_of
from agent.tcp.options import OptionValue
from agent.tcp.replay import RST
from agent.tcp.restoring import abandon, leave_repair, release, restore
from agent.tcp.rtt import early
from agent.tcp.stream import Stream
from tests.support.agents import Agent
from tests.support.netns import Host, network, wait_until
from tests.support.tcp import Pair, deaf, listen, sniffing, window_is_shut

SERVICE = {"ipv4": "10.99.0.100", "ipv6": "fd99::100", "mapped": "10.99.0.100"}
_USED_BY_RESTORE = {
    (socket.SOL_SOCKET, uapi.SO_REUSEADDR),
    (socket.IPPROTO_IP, uapi.IP_TRANSPARENT),
    (socket.IPPROTO_TCP, uapi.TCP_QUICKACK),
}
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Queues:
    """What is in the queues at the move."""

    to_server: int = 0  # bytes the server has not read
    to_client: int = 0  # bytes the server has sent, or tried to
    deaf: str = ""  # who no longer hears: "server" (acknowledgements are lost), "client" (data)
    buffer: int = 0  # of both ends, set before they are connected


CASES = {
    "empty": Queues(),
    "received": Queues(to_server=5000),
    "unacknowledged": Queues(to_client=5000, deaf="server"),
    "lost": Queues(to_client=5000, deaf="client"),
    "unsent": Queues(to_client=8 << 20, buffer=1 << 16),
    "all": Queues(to_server=20_000, to_client=300_000, deaf="server", buffer=1 << 18),
    "megabytes": Queues(to_server=6 << 20, to_client=24 << 20, buffer=8 << 20),
}


class Move:
    """A server's end of a connection on one host, on its way to another, or to the same."""

    def __init__(self, hosts: list[Host], address: str, agents: Callable[..., Agent]) -> None:
        self.source, self.destination, self.client = hosts
        self.address = address
        self._agents = {host: agents(host, [address]) for host in {*hosts[:2]}}
        self.source.add_address(address)

    def connect(self, kind: str, size: int) -> Pair:
        any_address = {"mapped": "::"}.get(kind, self.address)
        client = self.client.socket(socket.AF_INET6 if kind == "ipv6" else socket.AF_INET)
        with listen(self.source, any_address) as listener:
            if size:
                for sock in (listener, client):
                    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_RCVBUFFORCE, size)
                    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_SNDBUFFORCE, size)
            client.connect((self.address, listener.getsockname()[1]))
            server, _ = listener.accept()
        return Pair(server, client)

    def freeze(self, pair: Pair) -> Stream:
        """Lock both ends and dump; the image as it arrives."""
        connection = connection_of(pair.server)
        for agent in self._agents.values():
            agent.lock(connection)
        return Stream.from_wire(dump(pair.server).to_wire())

    def take_over(self, sock: socket.socket, stream: Stream) -> None:
        """The address goes to the destination, and the lock with it."""
        if self.source is not self.destination:
            length = "64" if ":" in self.address else "24"
            self.source.ip("address", "delete", f"{self.address}/{length}", "dev", "eth0")
            self.destination.add_address(self.address)
            self.client.ip("neigh", "flush", "dev", "eth0")
        agent = self._agents[self.destination]
        settle(sock, stream, agent.replayer.inject)
        agent.unlock()


@pytest.fixture(params=["same socket", "same host", "another host"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hosts(place: str) -> Iterator[list[Host]]:
    """Source, destination and client; the first two may be the same."""
    if place != "another host":
        with network("server", "client") as (server, client):
            yield [server, server, client]
    else:
        with network("source", "destination", "client") as three:
            yield three


@pytest.mark.parametrize("kind", SERVICE)
@pytest.mark.parametrize("case", CASES)
def test_every_byte_and_number(
    hosts: list[Host], agents: Callable[..., Agent], place: str, kind: str, case: str
) -> None:
    queues = CASES[case]
    move = Move(hosts, SERVICE[kind], agents)
    pair = move.connect(kind, queues.buffer)
    segment_size = pair.server.getsockopt(socket.IPPROTO_TCP, uapi.TCP_MAXSEG)
    with contextlib.closing(pair), sniffing(move.client) as wire:
        to_server = os.urandom(queues.to_server)
        with contextlib.ExitStack() as silence:
            fill(pair.client, to_server)
            await_received(pair.server, len(to_server))
            if queues.deaf:
                silence.enter_context(deaf(hosts[0] if queues.deaf == "server" else hosts[2]))
            to_client = os.urandom(queues.to_client)
            fill_up = fill if queues.deaf else fill_until_shut
            to_client = fill_up(pair.server, to_client)
            before = move.freeze(pair)
        assert_boundary(before, case)
        if place == "same socket":
            forget(pair.server)
            move.destination.run(restore, before, pair.server, ready=False)
        else:
            abandon(pair.server)
            pair.server = move.destination.run(restore, before)
        assert_same(dump(pair.server), before, _USED_BY_RESTORE)
        move.take_over(pair.server, before)
        release(pair.server, before)

        assert pair.server.getsockopt(socket.IPPROTO_TCP, uapi.TCP_MAXSEG) == segment_size
        more = os.urandom(200_000), os.urandom(300_000)
        received = exchange(pair, *more, len(to_server), len(to_client))
        assert received == (to_server + more[0], to_client + more[1])
        seen = [*wire.segments(outgoing=True), *wire.segments(outgoing=False)]
        assert seen and not [one for one in seen if one.flags & RST]
        after = dump(pair.server)
        for name in ("mss", "negotiated", "send_scale", "receive_scale"):
            assert getattr(after, name) == getattr(before, name), name
        assert settled(after) == settled(before)
        if queues.buffer:  # otherwise the kernel goes on tuning them
            for name in ("buffer_locks", "send_buffer", "receive_buffer"):
                assert getattr(after, name) == getattr(before, name), name
        release(pair.server, after)


def forget(sock: socket.socket) -> None:
    """As `agent.tcp.disconnect`, which is for sockets that its own `dump` has dumped."""
    connect_unspecified(sock.fileno())
    leave_repair(sock)
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def settled(image: Stream) -> list[tuple[int, int, OptionValue]]:
    """The options that traffic does not change."""
    quick = (socket.IPPROTO_TCP, uapi.TCP_QUICKACK)
    return [one for one in image.options if (one[0], one[1]) != quick]


def fill(sock: socket.socket, data: bytes) -> bytes:
    """Send as much as is taken at once; what that was."""
    sock.setblocking(False)
    view = memoryview(data)
    with contextlib.suppress(BlockingIOError):
        while view:
            view = view[sock.send(view) :]
    return data[: len(data) - len(view)]


def await_received(sock: socket.socket, count: int) -> None:
    wait_until("all is here", lambda: ioctl_int(sock.fileno(), uapi.SIOCINQ) == count)


def fill_until_shut(sock: socket.socket, data: bytes) -> bytes:
    """Send until the peer's window is shut: what it took is acknowledged, the rest waits."""
    sent = 0

    def shut() -> bool:
        nonlocal sent
        sent += len(fill(sock, data[sent:]))
        return window_is_shut(sock)

    if data:
        wait_until("the peer's window is shut", shut)
    return data[:sent]


def assert_boundary(image: Stream, case: str) -> None:
    """The case is what it says it is."""
    queued = len(image.send_queue)
    assert {
        "empty": queued == 0,
        "received": queued == 0,
        "unacknowledged": queued == 5000 and image.unsent == 0,
        "lost": queued == 5000 and image.unsent == 0,
        "unsent": queued == image.unsent > 0,
        "all": 0 < image.unsent < queued and len(image.receive_queue) == 20_000,
        "megabytes": image.unsent == queued > 4 << 20 and len(image.receive_queue) == 6 << 20,
    }[case], (queued, image.unsent, len(image.receive_queue))


def assert_same(found: Stream, wanted: Stream, without: set[tuple[int, int]]) -> None:
    """Two images are of one connection; time may have gone on, and `settle` is still to come."""
    assert (found.timestamp - wanted.timestamp) & _MASK < 30_000  # ms
    before = early(wanted)
    sent = found.send_queue[before:]
    queues = (sent == wanted.send_queue, found.receive_queue == wanted.receive_queue)
    assert queues == (True, True)  # apart from the rest, as nobody reads a difference of megabytes
    rows = [
        [one for one in image.options if (one[0], one[1]) not in without]
        for image in (found, wanted)
    ]
    found, wanted = (
        replace(image, options=options, timestamp=0, rtt=0, send_queue=b"", receive_queue=b"")
        for image, options in zip((found, wanted), rows, strict=True)
    )
    found.send_seq = (found.send_seq + before) & _MASK
    assert found == wanted


def exchange(
    pair: Pair, to_server: bytes, to_client: bytes, server_owed: int, client_owed: int
) -> tuple[bytes, bytes]:
    """Send both ways at once; what the server and the client have received, with what they were
    owed from before."""
    wanted = {pair.server: server_owed + len(to_server), pair.client: client_owed + len(to_client)}
    unsent = {pair.server: memoryview(to_client), pair.client: memoryview(to_server)}
    received = {pair.server: bytearray(), pair.client: bytearray()}
    deadline = time.monotonic() + 20
    with selectors.DefaultSelector() as selector:
        for sock in wanted:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while selector.get_map():
            assert time.monotonic() < deadline, [len(one) for one in received.values()]
            for key, events in selector.select(1):
                sock = pair.server if key.fileobj is pair.server else pair.client
                if events & selectors.EVENT_WRITE and unsent[sock]:
                    unsent[sock] = unsent[sock][sock.send(unsent[sock]) :]
                if events & selectors.EVENT_READ:
                    part = sock.recv(1 << 20)
                    assert part, f"ended after {len(received[sock])} of {wanted[sock]} bytes"
                    received[sock] += part
                open_ends = selectors.EVENT_READ * (len(received[sock]) < wanted[sock])
                open_ends |= selectors.EVENT_WRITE * bool(unsent[sock])
                if open_ends:
                    selector.modify(sock, open_ends)
                else:
                    selector.unregister(sock)
    return bytes(received[pair.server]), bytes(received[pair.client])
