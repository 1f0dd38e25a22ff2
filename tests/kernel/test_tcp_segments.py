"""Each segment that a moved connection sends, told by a peer that is a script.

From the dump to the unlock there is none. At the release there is the window probe, and what
follows is by what the peer answers: what was sent and lost comes again, what arrived does not.
"""

from __future__ import annotations

import os

import pytest

from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp.restoring import probe_again
from tests.support.netns import wait_until
from tests.support.scripted import MSS, Heard, probe
from tests.support.service import (
    PLACES,
    Serve,
    Service,
    largest,
    pieces,
    receive,
    stream_of,
)
from tests.support.tun import ACK

PEERS: dict[str, dict[str, int]] = {
    "all options": {},
    "no timestamps": {"timestamps": False},
    "no SACK": {"sack": False},
    "no options": {"timestamps": False, "sack": False, "scaled": False},
}


@pytest.mark.parametrize("kind", PEERS)
def test_nothing_was_to_do(serve: Serve, kind: str) -> None:
    """One probe, and not another word: not to the answer either."""
    service = serve(**PEERS[kind])
    service.move()
    assert service.release() == [probe(0, 0)]
    service.peer.say()
    assert service.peer.heard() == []
    service.sock.send(b"from here on")
    assert service.peer.heard() == [Heard(ACK, 0, b"from here on", 0, 0)]


def test_data_waits_to_be_read(serve: Serve) -> None:
    service = serve()
    service.peer.say(b"request")
    before = service.peer.heard()
    edge = service.peer.right_edge
    service.move()
    assert service.release() == [probe(0, 7)]
    assert service.peer.right_edge == edge or not before  # the window is the same to the byte
    service.peer.say()
    assert service.peer.heard() == []
    assert service.sock.recv(100) == b"request"


@pytest.mark.parametrize("kind", ["all options", "no SACK"])
def test_sent_and_lost(serve: Serve, kind: str) -> None:
    """It comes again, from its first byte to its last; nothing else does."""
    lose(serve(**PEERS[kind]))


@pytest.mark.parametrize("kind", ["no timestamps", "no options"])
@pytest.mark.parametrize("place", ["fresh socket"], indirect=True)
@pytest.mark.parametrize("family", [4], indirect=True)
def test_sent_and_lost_without_a_clock(serve: Serve, kind: str) -> None:
    """The same, seconds later: the round-trip time could not be given back."""
    lose(serve(**PEERS[kind]))


def lose(service: Service) -> None:
    data = os.urandom(3 * MSS)
    service.sock.send(data)
    assert stream_of(service.peer.heard(), 0) == data
    service.move()
    assert service.release() == [probe(0, 0)]
    service.peer.say()  # it has nothing of that
    receive(service, data, 0, service.peer.heard())


@pytest.mark.parametrize("kind", PEERS)
def test_sent_and_arrived(serve: Serve, kind: str) -> None:
    """Only the acknowledgements were lost: the probe brings one, and nothing is sent again."""
    service = serve(**PEERS[kind])
    data = os.urandom(3 * MSS)
    service.sock.send(data)
    assert stream_of(service.peer.heard(), 0) == data
    service.move()
    assert service.release() == [probe(0, 0)]
    service.peer.say(ack=len(data))
    assert service.queued() == 0
    service.sock.send(b"more")
    assert service.peer.heard() == [Heard(ACK, len(data), b"more", 0, 0)]
    assert service.retransmitted() == 0


@pytest.mark.parametrize("place", PLACES[:3], indirect=True)
@pytest.mark.parametrize("rtt", [0, 1, 999, 1000, 150_000])
def test_the_timers_go_by_the_round_trip_time_of_before(serve: Serve, rtt: int) -> None:
    """Else the kernel waits three seconds for what was lost (TCP_TIMEOUT_FALLBACK). Twice, as a
    connection may move again before it has heard anything."""
    service = serve()
    service.sock.send(b"lost")
    assert service.peer.heard() == pieces(b"lost", 0, 0, 4)
    for _ in range(2):
        stream = service.move(rtt=rtt)
        assert (stream.send_seq - service.peer.isn - 1) & 0xFFFFFFFF == 0
        assert service.release() == [probe(0, 0)]
        timeout, measured = service.timers()
        if rtt:
            assert measured == pytest.approx(rtt, abs=50_000)  # a busy machine adds to it
            assert timeout < 1_000_000
        else:
            assert (measured, timeout) == (0, 3_000_000)
    service.peer.say(ack=4)
    assert service.queued() == 0 and service.peer.heard() == []


def test_sent_and_arrived_in_part(serve: Serve) -> None:
    """What the peer has is not sent again."""
    service = serve()
    size = largest(service.peer)
    data = os.urandom(3 * size)
    service.sock.send(data)
    service.peer.heard()
    service.move()
    assert service.release() == [probe(0, 0)]
    service.peer.say(ack=size)
    receive(service, data, size, service.peer.heard())


@pytest.mark.parametrize("kind", PEERS)
def test_unsent(serve: Serve, kind: str) -> None:
    """The peer's window was shut. With the answer that opens it all goes out, as new data."""
    service = serve(**PEERS[kind], window=2048)
    data = os.urandom(8000)
    service.sock.send(data)
    first = stream_of(service.peer.heard(), 0)
    rest = data[len(first) :]
    assert first == data[: len(first)] and first and rest
    service.peer.window = 0
    service.peer.say(ack=len(first))
    stream = service.move()
    assert (len(stream.send_queue), stream.unsent) == (len(rest), len(rest))
    assert service.release() == [probe(len(first), 0)]
    service.peer.window = 20_000
    service.peer.say(ack=len(first))
    assert stream_of(service.peer.heard(), len(first)) == rest
    service.peer.say(ack=len(first + rest))
    assert service.queued() == 0 and service.retransmitted() == 0


@pytest.mark.parametrize("arrived", [True, False], ids=["arrived", "lost"])
def test_sent_and_unsent(serve: Serve, arrived: bool) -> None:
    """The boundary: the unsent part comes at once, the sent part if it was lost only."""
    service = serve(window=3072)
    data = os.urandom(8000)
    service.sock.send(data)
    sent = stream_of(service.peer.heard(), 0)
    unsent = data[len(sent) :]
    assert sent == data[: len(sent)] and sent and unsent
    stream = service.move()
    assert (len(stream.send_queue), stream.unsent) == (len(sent + unsent), len(unsent))
    assert service.release() == [probe(0, 0)]
    service.peer.window = 20_000
    service.peer.say(ack=len(sent) if arrived else 0)
    new = service.peer.heard()
    assert stream_of(new, len(sent)) == unsent
    if arrived:
        service.peer.say(ack=len(data))
        assert service.queued() == 0 and service.retransmitted() == 0
    else:
        service.peer.say(sacked=((len(sent), len(data)),))
        receive(service, data, 0, service.peer.heard(), {*range(len(sent), len(data))})


def test_the_probe_was_lost(serve: Serve) -> None:
    """Asking again is one more of the same."""
    service = serve()
    stream = service.move()
    assert service.release() == [probe(0, 0)]
    probe_again(service.sock, stream)
    assert service.peer.heard() == [probe(0, 0)]


def test_out_of_order_data(serve: Serve) -> None:
    """What came behind a hole is left behind, and asked for: the peer still has it."""
    service = serve()
    service.peer.say(b"5678", seq=4)
    service.peer.heard()  # a SACK
    service.move()
    assert service.release() == [probe(0, 0)]
    service.peer.say(b"1234")
    assert [one.ack for one in service.peer.heard()] in ([], [4 if service.restored else 8])
    service.peer.say(b"5678")
    wait_until("all is here", lambda: ioctl_int(service.sock.fileno(), uapi.SIOCINQ) == 8)
    assert service.sock.recv(100) == b"12345678"
