"""Each segment of a connection that is closing or opening, told by a peer that is a script.

A FIN comes again where it was sent and is not acknowledged, a SYN with its number and options, and
nothing is sent that the peer has acknowledged. Never is there a reset: every segment is asserted.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace

import pytest

from agent import tcp as engine
from agent.kernel import uapi
from tests.support.scripted import MSS, SERVICE_PORT, Heard, Scripted, probe
from tests.support.service import Serve, Service, receive, stream_of
from tests.support.sites import SERVICE, Lab
from tests.support.tcp import AF
from tests.support.tun import ACK, FIN, SYN, Packet

STATES = {
    "FIN_WAIT1": uapi.TCP_FIN_WAIT1,
    "CLOSE_WAIT": uapi.TCP_CLOSE_WAIT,
    "CLOSING": uapi.TCP_CLOSING,
    "LAST_ACK": uapi.TCP_LAST_ACK,
}
FIN_SENT = ("FIN_WAIT1", "CLOSING", "LAST_ACK")
FIN_RECEIVED = ("CLOSE_WAIT", "CLOSING", "LAST_ACK")
REQUEST = b"request"  # not read by the service
SIZES = {"no data": 0, "data": 3 * MSS}
NOTHING_SENT = ("CLOSE_WAIT", "no data")


def fin(at: int, ack: int) -> Heard:
    return Heard(FIN | ACK, at, b"", ack, 0)


def ack(at: int, of: int) -> Heard:
    """A bare acknowledgement."""
    return Heard(ACK, at, b"", of, 0)


def bring(service: Service, name: str, data: bytes) -> int:
    """Into a state, with `data` on its way; how much of the peer has been received, FIN included.

    Of what the service has sent the peer has acknowledged nothing.
    """
    peer, received = service.peer, len(REQUEST)
    peer.say(REQUEST)
    if name in ("CLOSE_WAIT", "LAST_ACK"):
        peer.say(flags=FIN | ACK)
        received += 1
    peer.heard()
    if data:
        service.sock.send(data)
        assert stream_of(peer.heard(), 0) == data
    if name in FIN_SENT:
        service.sock.shutdown(socket.SHUT_WR)
        assert peer.heard() == [fin(len(data), received)]
    if name == "CLOSING":
        peer.say(flags=FIN | ACK)
        received += 1
        assert peer.heard() == [ack(len(data) + 1, received)]
    assert service.state == STATES[name]
    return received


def released(service: Service, name: str, size: int) -> list[Heard]:
    """What the release sends, asserted: the probe, then what brings the state back. The FIN of the
    peer is acknowledged once more and ours is sent once more, in the order that they had."""
    heard = service.release()
    if not service.restored:
        assert heard == []
        return []
    got = len(REQUEST)
    expected = [probe(0, got)]
    if name in ("CLOSE_WAIT", "LAST_ACK"):
        got += 1
        if (delayed := ack(size, got)) in heard:  # as a rule our FIN, or a timer, brings it
            expected.append(delayed)
    if name in FIN_SENT:
        expected.append(fin(size, got))
    if name == "CLOSING":
        expected.append(ack(size + 1, got + 1))
    assert heard == expected
    return heard


def end(service: Service, name: str, size: int) -> None:
    """The peer has all: what is left of the connection, to its last segment."""
    peer = service.peer
    total = size + (name in FIN_SENT)
    assert service.sock.recv(100) == REQUEST
    if name == "FIN_WAIT1":
        assert service.state == uapi.TCP_FIN_WAIT2
        peer.say(flags=FIN | ACK, ack=total)
        assert peer.heard() == [ack(total, peer.sent)]
    elif name == "CLOSE_WAIT":
        assert service.sock.recv(100) == b""
        service.sock.send(b"last words")
        assert peer.heard() == [Heard(ACK, size, b"last words", peer.sent, 0)]
        service.sock.shutdown(socket.SHUT_WR)
        assert peer.heard() == [fin(size + 10, peer.sent)]
        peer.say(ack=size + 11)
        assert peer.heard() == []
    assert service.state == uapi.TCP_CLOSE  # or TIME_WAIT, which has no socket


@pytest.mark.parametrize("amount", SIZES)
@pytest.mark.parametrize("name", STATES)
def test_arrived(serve: Serve, name: str, amount: str) -> None:
    """The peer had all, and its acknowledgements were lost: no data is sent again."""
    service = serve()
    data = os.urandom(SIZES[amount])
    received = bring(service, name, data)
    service.move()
    heard = released(service, name, len(data))
    assert service.state == STATES[name]
    service.peer.say(ack=len(data) + (name in FIN_SENT))
    if name == "CLOSE_WAIT" and heard == [probe(0, len(REQUEST))]:
        assert service.hear(bool) == [ack(len(data), received)]
    assert service.peer.heard() == [] and service.queued() == 0
    end(service, name, len(data))


@pytest.mark.parametrize(
    ("name", "amount"),
    [(name, amount) for name in STATES for amount in SIZES if (name, amount) != NOTHING_SENT],
)
def test_lost(serve: Serve, name: str, amount: str) -> None:
    """What was sent has not arrived: each byte and the FIN come again, once."""
    service = serve()
    data = os.urandom(SIZES[amount])
    received = bring(service, name, data)
    service.move()
    late = [one for one in released(service, name, len(data)) if one.flags & FIN]
    if not late:
        service.peer.say()
        late = service.peer.heard()
    delayed = ack(len(data), received) if name == "CLOSE_WAIT" else None
    receive(service, data, 0, late, fin=name in FIN_SENT, aside=delayed)
    end(service, name, len(data))


@pytest.mark.parametrize("name", ["FIN_WAIT1", "LAST_ACK"])
def test_a_fin_behind_unsent_data(serve: Serve, name: str) -> None:
    """The peer's window was shut, and the FIN never sent: it goes out once, behind the data."""
    service = serve(window=2048)
    peer, data = service.peer, os.urandom(8000)
    received = 0
    if name == "LAST_ACK":
        peer.say(flags=FIN | ACK)
        peer.heard()
        received = 1
    service.sock.send(data)
    first = stream_of(peer.heard(), 0)
    peer.window = 0
    peer.say(ack=len(first))
    service.sock.shutdown(socket.SHUT_WR)
    assert peer.heard() == [] and service.state == STATES[name]
    stream = service.move()
    assert (len(stream.send_queue), stream.unsent) == (len(data) - len(first),) * 2
    heard = service.release()
    assert heard[:1] == ([probe(len(first), 0)] if service.restored else [])
    if service.restored and received:  # the peer's FIN, at once or a little later
        assert heard[1:] or service.hear(bool) == [ack(len(first), 1)]
    assert service.state == STATES[name]
    peer.window = 20_000
    peer.say(ack=len(first))
    *most, last = peer.heard()
    assert all(one.flags == ACK for one in most) and last.flags == FIN | ACK
    assert stream_of([*most, last], len(first)) == data[len(first) :]
    peer.say(ack=len(data) + 1)
    assert peer.heard() == [] and service.queued() == 0 and service.retransmitted() == 0
    assert service.state == (uapi.TCP_CLOSE if received else uapi.TCP_FIN_WAIT2)


@pytest.mark.parametrize("amount", SIZES)
def test_fin_wait2(serve: Serve, amount: str) -> None:
    """Nothing is owed to the peer, and nothing is said; what it still sends is taken."""
    service = serve()
    peer, data = service.peer, os.urandom(SIZES[amount])
    bring(service, "FIN_WAIT1", data)
    total = len(data) + 1
    peer.say(ack=total)
    assert service.state == uapi.TCP_FIN_WAIT2
    service.move()
    assert service.release() == []
    assert service.state == uapi.TCP_FIN_WAIT2
    peer.say(b" and more", ack=total)
    assert peer.heard() in ([], [ack(total, 16)])  # at once, or with the next
    peer.say(flags=FIN | ACK, ack=total)
    assert peer.heard() == [ack(total, 17)]
    assert service.sock.recv(100) == REQUEST + b" and more"
    assert service.state == uapi.TCP_CLOSE  # or TIME_WAIT, which has no socket


def opening(wire: Lab, family: int, place: str) -> tuple[Service, Packet]:
    """A connection that the service opens, and its first SYN."""
    site = wire.sites[0]
    peer = Scripted(site, family)
    sock = site.host.socket(AF[family], socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((SERVICE[family], SERVICE_PORT))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((peer.connection.remote, peer.port))
    return Service(wire, place, peer, sock), peer.await_syn()


def test_syn_sent(wire: Lab, family: int, place: str) -> None:
    """The SYN comes again by its timer, the same but for its clock, and its answer opens the
    connection with one acknowledgement."""
    wire.sites[0].take_address(family)
    service, syn = opening(wire, family, place)
    peer = service.peer
    try:
        service.move()
        assert service.release() == []
        assert service.state == uapi.TCP_SYN_SENT
        again = peer.await_syn_again()
        assert _without_clock(again) == _without_clock(syn)
        peer.accept(again)
        assert peer.heard() == [ack(0, 0)]
        assert service.state == uapi.TCP_ESTABLISHED
        service.sock.send(b"hello")
        assert peer.heard() == [Heard(ACK, 0, b"hello", 0, 0)]
    finally:
        engine.abandon(service.sock)
        for site in wire.sites:
            site.unlock()
            site.drop_address(family)
        for host in wire.hosts:
            host.sent()


def _without_clock(syn: Packet) -> tuple[Packet, object, object, bool, bool]:
    assert syn.flags == SYN
    return (
        replace(syn, options=b""), syn.mss, syn.scale, syn.sack_allowed, syn.timestamps is not None,
    )  # fmt: skip
