"""A connection in SYN_SENT is opened at the other side of the move as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import pytest

from agent.kernel import uapi
from agent.netlock.render import Connection
from agent.tcp import (
    Stream,
    StreamError,
    abandon,
    disconnect,
    dump,
    opening,
    release,
    restore,
)
from agent.tcp.replay import RST, SYN
from tests.support.agents import Agent
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    AF,
    Pair,
    begin_connect,
    begin_connect_as,
    deaf,
    echo_works,
    listen,
    listen_as,
    readable,
    sniffing,
    state,
)

_TCP = socket.IPPROTO_TCP
PLACES = ["elsewhere", "in place"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def carried(host: Host, sock: socket.socket, place: str) -> tuple[Stream, socket.socket]:
    """Dumped, as bytes, and restored; not released yet."""
    data = host.run(dump, sock).to_bytes()
    stream = Stream.from_bytes(data)
    if place == "in place":
        disconnect(sock)
        return stream, host.run(restore, stream, sock)
    abandon(sock)
    return stream, host.run(restore, stream)


def syns(seen: list) -> list[tuple[int, bytes]]:  # type: ignore[type-arg]
    """Sequence number and options of each SYN, without its clock."""
    rows = []
    for one in seen:
        if one.flags & (SYN | 0x10) == SYN:
            (sequence,) = struct.unpack_from("!I", one.tcp, 4)
            rows.append((sequence, without_clock(one.tcp[20:])))
    return rows


def without_clock(options: bytes) -> bytes:
    at = opening.option_offset(bytes(20) + options, uapi.TCPOPT_TIMESTAMP)
    assert at is not None
    return options[: at - 20] + options[at - 10 :]


def test_the_peer_has_heard_nothing(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int, place: str
) -> None:
    """The same SYN comes again, and the connection opens."""
    server, client = pair
    with listen(server, server.address(family)) as listener, sniffing(client) as sniffer:
        port = listener.getsockname()[1]
        with deaf(server):
            sock = begin_connect(client, server.address(family), port)
            sock.setsockopt(_TCP, uapi.TCP_SYNCNT, 9)
            agent = agents(client, [client.address(family)])
            local = sock.getsockname()
            agent.lock(Connection(family, local[0], local[1], server.address(family), port))
            stream, sock = carried(client, sock, place)
            assert stream.remote == (server.address(family), port)
            assert state(sock) == uapi.TCP_SYN_SENT
        agent.unlock()
        client.run(release, sock)
        served, name = listener.accept()
        assert name[:2] == local[:2]
        wait_until("it is open", lambda: state(sock) == uapi.TCP_ESTABLISHED)
        assert sock.getsockopt(_TCP, uapi.TCP_SYNCNT) == 9
        sock.settimeout(10)
        served.settimeout(10)
        echo_works(Pair(served, sock))
        seen = sniffer.segments(outgoing=True)
        rows = syns(seen)
        assert len(rows) >= 2 and len(set(rows)) == 1
        assert not [one for one in seen if one.flags & RST]
        served.close()
        sock.close()


def test_the_answer_comes_in_the_blackout(
    pair: tuple[Host, Host], agents: Callable[..., Agent], family: int, place: str
) -> None:
    """It is replayed: it answers the SYN of before, with that one's clock and window scale."""
    server, client = pair
    with listen(server, server.address(family)) as listener, sniffing(client) as sniffer:
        port = listener.getsockname()[1]
        with client.socket(AF[family], socket.SOCK_STREAM) as finder:
            finder.bind((client.address(family), 0))
            local = finder.getsockname()
        connection = Connection(family, local[0], local[1], server.address(family), port)
        agent = agents(client, [client.address(family)])
        with deaf(client):  # so that the capture alone hears the answer
            sock = client.socket(AF[family], socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 300_000)
            sock.bind(local[:2])
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((server.address(family), port))
            packets: list[bytes] = []

            def answered() -> bool:
                packets.extend(agent.capture.drain({connection}, ()))
                return bool(packets)

            wait_until("the answer was captured", answered)
            agent.lock(connection)
            stream, sock = carried(client, sock, place)
            assert stream.buffer_locks & uapi.SOCK_RCVBUF_LOCK
        agent.unlock()
        client.run(release, sock)
        packets = [opening.fit(sock, stream, one) for one in packets]
        assert agent.replayer.replay(packets) == len(packets)
        assert state(sock) == uapi.TCP_ESTABLISHED
        served, _ = listener.accept()
        sock.settimeout(10)
        served.settimeout(10)
        data = os.urandom(200_000)
        served.setblocking(False)
        assert served.send(data) > 60_000
        served.setblocking(True)
        wait_until("data is here", lambda: readable(sock))
        seen = [*sniffer.segments(outgoing=True), *sniffer.segments(outgoing=False)]
        assert not [one for one in seen if one.flags & RST]
        served.close()
        sock.close()


def test_each_kind_of_address(pair: tuple[Host, Host], kind: str, place: str) -> None:
    server, client = pair
    with listen_as(server, kind) as listener:
        with deaf(server):
            sock = begin_connect_as(client, listener)
            local = sock.getsockname()
            stream, sock = carried(client, sock, place)
            assert stream.state == uapi.TCP_SYN_SENT
            assert sock.getsockname() == local
        client.run(release, sock)
        served, name = listener.accept()
        assert name == local
        sock.settimeout(10)
        served.settimeout(10)
        echo_works(Pair(served, sock))
        served.close()
        sock.close()


def test_its_port_has_another_connection(pair: tuple[Host, Host], family: int, place: str) -> None:
    """As ephemeral ports do, to other peers; that one does not let its address be used again."""
    server, client = pair
    with contextlib.ExitStack() as held:
        first, second = (
            held.enter_context(listen(server, server.address(family))) for _ in range(2)
        )
        other = held.enter_context(client.socket(AF[family], socket.SOCK_STREAM))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((client.address(family), 0))
        other.connect(first.getsockname()[:2])
        sock = client.socket(AF[family], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(other.getsockname()[:2])
        with deaf(server):
            with contextlib.suppress(BlockingIOError):
                sock.connect(second.getsockname()[:2])
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            _, sock = carried(client, sock, place)
        client.run(release, sock)
        served, name = second.accept()
        assert name[:2] == other.getsockname()[:2]
        sock.settimeout(10)
        served.settimeout(10)
        echo_works(Pair(served, sock))
        served.close()
        sock.close()


def test_rollback(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with listen(server, server.address(family)) as listener:
        port = listener.getsockname()[1]
        with deaf(server):
            sock = begin_connect(client, server.address(family), port)
            client.run(dump, sock)
        client.run(release, sock)
        served, _ = listener.accept()
        sock.settimeout(10)
        echo_works(Pair(served, sock))
        served.close()
        sock.close()


def test_the_segment_size_that_was_asked_for(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with listen(server, server.address(family)) as listener:
        with deaf(server):
            sock = client.socket(AF[family], socket.SOCK_STREAM)
            sock.setsockopt(_TCP, uapi.TCP_MAXSEG, 700)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname()[:2])
            stream, sock = carried(client, sock, "elsewhere")
            assert stream.mss == 700
        client.run(release, sock)
        served, _ = listener.accept()
        assert served.getsockopt(_TCP, uapi.TCP_MAXSEG) <= 700
        served.close()
        sock.close()


def test_data_in_the_syn_is_refused(pair: tuple[Host, Host], family: int) -> None:
    """TCP Fast Open without a cookie: what the SYN carries could not be carried again."""
    server, client = pair
    for host in pair:
        host.sysctl("net/ipv4/tcp_fastopen", 0x207)
    with client.socket(AF[family], socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError), deaf(server):
            sock.sendto(b"early", socket.MSG_FASTOPEN, (server.address(family), 9))
        assert state(sock) == uapi.TCP_SYN_SENT
        with pytest.raises(StreamError, match="SYN carries data"):
            client.run(dump, sock)
        assert sock.getsockopt(_TCP, uapi.TCP_REPAIR) == 0
