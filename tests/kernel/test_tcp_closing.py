"""Half-closed and closing connections keep their state, their bytes and their end."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp import Stream, abandon, disconnect, dump, release, restore
from agent.tcp.replay import RST, Replayer
from agent.tcp.segment import ACK, segment
from tests.support.netns import Host, wait_until
from tests.support.tcp import Pair, connected, deaf, sniffing, state

STATES = {
    "CLOSE_WAIT": uapi.TCP_CLOSE_WAIT,
    "FIN_WAIT1": uapi.TCP_FIN_WAIT1,
    "FIN_WAIT2": uapi.TCP_FIN_WAIT2,
    "CLOSING": uapi.TCP_CLOSING,
    "LAST_ACK": uapi.TCP_LAST_ACK,
}


@dataclass
class Case:
    """A connection that was brought into a state; what is still to be read at either end."""

    pair: Pair
    to_server: bytes
    to_client: bytes


def bring(case: Case, wanted: int, client_host: Host, silence: contextlib.ExitStack) -> None:
    """Send what is to be read, then the FINs, as they lead to the state.

    Where the peer must not have acknowledged, it is deaf until `silence` ends.
    """
    server, client = case.pair.server, case.pair.client
    client.sendall(case.to_server)
    if wanted in (uapi.TCP_CLOSE_WAIT, uapi.TCP_LAST_ACK):
        client.shutdown(socket.SHUT_WR)
        wait_until("the client's FIN is here", lambda: state(server) == uapi.TCP_CLOSE_WAIT)
    if wanted in (uapi.TCP_FIN_WAIT1, uapi.TCP_CLOSING, uapi.TCP_LAST_ACK):
        wait_until("all is here", lambda: queued(server) == len(case.to_server))
        silence.enter_context(deaf(client_host))
    if wanted != uapi.TCP_FIN_WAIT2:
        server.sendall(case.to_client)
    if wanted != uapi.TCP_CLOSE_WAIT:
        server.shutdown(socket.SHUT_WR)
    if wanted == uapi.TCP_CLOSING:
        client.shutdown(socket.SHUT_WR)
    wait_until("the state", lambda: state(server) == wanted)
    wait_until("all is here", lambda: queued(server) == len(case.to_server))


def queued(sock: socket.socket) -> int:
    return ioctl_int(sock.fileno(), uapi.SIOCINQ)


def moved(host: Host, case: Case, place: str) -> tuple[Stream, socket.socket]:
    """Dump the server's end and restore it; the image and the socket."""
    old = case.pair.server
    stream = Stream.from_bytes(dump(old).to_bytes())
    if place == "in place":
        disconnect(old)
        sock = host.run(restore, stream, old)
    else:
        abandon(old)
        sock = host.run(restore, stream)
    host.run(release, sock)
    case.pair.server = sock
    sock.settimeout(10)
    return stream, sock


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


@pytest.fixture(params=["elsewhere", "in place"])
def place(request: pytest.FixtureRequest) -> str:
    """Onto a new socket, or onto the same one that has forgotten its connection."""
    return str(request.param)


@pytest.mark.parametrize("amount", [0, 5000])
@pytest.mark.parametrize("name", STATES)
def test_state_bytes_and_end(
    pair: tuple[Host, Host], kind: str, place: str, name: str, amount: int
) -> None:
    server, client = pair
    wanted = STATES[name]
    with connected(server, client, kind) as held, sniffing(client) as sniffer:
        case = Case(held, os.urandom(amount), os.urandom(amount))
        with contextlib.ExitStack() as silence:
            bring(case, wanted, client, silence)
            stream, sock = moved(server, case, place)
            assert state(sock) == wanted
            assert stream.receive_queue == case.to_server
        if wanted == uapi.TCP_FIN_WAIT2:
            assert read_to_end(held.client) == b""  # its end has come before
        else:
            if wanted == uapi.TCP_CLOSE_WAIT:
                more = os.urandom(70_000)
                sock.sendall(more)
                sock.shutdown(socket.SHUT_WR)
                case.to_client += more
            assert read_to_end(held.client) == case.to_client
        if wanted in (uapi.TCP_FIN_WAIT1, uapi.TCP_FIN_WAIT2):
            more = os.urandom(70_000)
            held.client.sendall(more)
            held.client.shutdown(socket.SHUT_WR)
            case.to_server += more
        assert read_to_end(sock) == case.to_server
        ended = (uapi.TCP_CLOSE, uapi.TCP_TIME_WAIT)
        wait_until("both ends have ended", lambda: state(sock) in ended)
        wait_until("both ends have ended", lambda: state(held.client) in ended)
        seen = [*sniffer.segments(outgoing=True), *sniffer.segments(outgoing=False)]
        assert seen and not [one for one in seen if one.flags & RST]


def test_fin_behind_unsent_data(pair: tuple[Host, Host], kind: str, place: str) -> None:
    """The peer's window is shut: data and FIN are queued, none of it sent."""
    server, client = pair
    with connected(server, client, kind) as held:
        held.server.setblocking(False)
        data = bytearray()
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = os.urandom(1 << 16)
                data += piece[: held.server.send(piece)]
        held.server.shutdown(socket.SHUT_WR)
        stream, sock = moved(server, Case(held, b"", bytes(data)), place)
        assert stream.unsent > 0
        assert state(sock) == uapi.TCP_FIN_WAIT1
        assert read_to_end(held.client) == data


@pytest.mark.parametrize("sysctl", [0, 1])
def test_windows_keep_their_scale(
    pair: tuple[Host, Host], kind: str, place: str, sysctl: int
) -> None:
    """Also none: connect() in repair mode would choose one."""
    server, client = pair
    client.sysctl("net/ipv4/tcp_window_scaling", sysctl)
    with connected(server, client, kind) as held, sniffing(client) as sniffer:
        held.client.sendall(b"before")
        wait_until("it is here", lambda: queued(held.server) == 6)
        before = sniffer.segments(outgoing=False)[-1].tcp[14:16]
        moved(server, Case(held, b"before", b""), place)
        after = sniffer.segments(outgoing=False)[-1].tcp[14:16]
        assert after == before


def test_a_segment_that_is_acknowledged_in_part(
    pair: tuple[Host, Host], kind: str, place: str
) -> None:
    """Two writes became one segment at the first move; the peer's answer to one of them is late."""
    server, client = pair
    with connected(server, client, kind) as held, contextlib.closing(server.run(Replayer)) as raw:
        with deaf(client):
            held.server.sendall(b"first")
            held.server.sendall(b"2nd")
            stream, _ = moved(server, Case(held, b"", b""), place)
            stream.send_seq += len(b"first")
            raw.inject([segment(stream, ACK)])
            wait_until("it is acknowledged", lambda: unacknowledged(held.server) == 3)
            again, _ = moved(server, Case(held, b"", b""), place)
        assert again.send_queue == b"2nd"


def unacknowledged(sock: socket.socket) -> int:
    return ioctl_int(sock.fileno(), uapi.SIOCOUTQ)
