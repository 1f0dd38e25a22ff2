"""A service whose peer is a script, and its moves: every segment of it is told, at each step."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from agent import tcp as engine
from agent.kernel import uapi
from agent.kernel.syscalls import ioctl_int
from agent.tcp import Stream
from tests.support.netns import wait_until
from tests.support.scripted import MSS, Heard, Scripted
from tests.support.sites import Lab
from tests.support.tun import ACK, FIN, tun_hosts

_TCP = socket.IPPROTO_TCP
_RETRANSMITTED = struct.Struct("=100xI")  # tcpi_total_retrans
_TIMERS = struct.Struct("=8xI56xI")  # tcpi_rto, tcpi_rtt
PLACES = ("another host", "fresh socket", "same socket", "rollback")


@contextlib.contextmanager
def scripted_lab() -> Iterator[Lab]:
    """Two sites and the wire between; no connection knows of another."""
    with contextlib.ExitStack() as undo:
        hosts = undo.enter_context(tun_hosts("source", "destination", "client"))
        for host in hosts:
            host.sysctl("net/ipv4/tcp_no_metrics_save", 1)
            # On this wire the loss probe would come after 4 ms: before the peer's answer, where
            # the machine is busy. Without it the first timer is that of 200 ms.
            host.sysctl("net/ipv4/tcp_early_retrans", 0)
        yield Lab(hosts, undo, quick=False)


@dataclass
class Service:
    """The service's end, and its peer."""

    lab: Lab
    place: str
    peer: Scripted
    sock: socket.socket
    _before: int = 0

    def move(self, **changes: int) -> Stream:
        """Everything up to the release, without a word; the image, with changes to its fields."""
        here = self.peer.site
        there = self.lab.other(here) if self.place == "another host" else here
        for site in {here, there}:
            site.lock(self.peer.connection)
        self.peer.heard()  # a timer may have run out before the lock
        self._before = 0 if self.restored else self._retransmitted()
        stream = Stream.from_bytes(here.host.run(engine.dump, self.sock).to_bytes())
        stream = replace(stream, **changes)
        if self.place == "same socket":
            engine.disconnect(self.sock)
            there.host.run(engine.restore, stream, self.sock)
        elif self.place != "rollback":
            engine.abandon(self.sock)
            self.sock = there.host.run(engine.restore, stream)
        self._silent()
        if here is not there:
            here.drop_address(self.peer.family)
            there.take_address(self.peer.family)
            self.peer.site = there
        for site in {here, there}:
            site.unlock()
        self._silent()
        return stream

    def _silent(self) -> None:
        found = self.peer.heard()
        assert found == [], found

    def release(self) -> list[Heard]:
        """What is sent at the release."""
        self.peer.site.host.run(engine.release, self.sock)
        return self.peer.heard()

    @property
    def restored(self) -> bool:
        return self.place != "rollback"

    @property
    def state(self) -> int:
        return int(self.sock.getsockopt(_TCP, uapi.TCP_INFO, 1)[0])

    def queued(self) -> int:
        return ioctl_int(self.sock.fileno(), uapi.SIOCOUTQ)

    def retransmitted(self) -> int:
        """Segments sent again since the move."""
        return self._retransmitted() - self._before

    def _retransmitted(self) -> int:
        info = self.sock.getsockopt(_TCP, uapi.TCP_INFO, _RETRANSMITTED.size)
        return int(_RETRANSMITTED.unpack(info)[0])

    def timers(self) -> tuple[int, int]:
        """The retransmission timeout and the smoothed round-trip time, in microseconds."""
        info = self.sock.getsockopt(_TCP, uapi.TCP_INFO, _TIMERS.size)
        timeout, rtt = _TIMERS.unpack(info)
        return timeout, rtt

    def hear(self, enough: Callable[[list[Heard]], bool]) -> list[Heard]:
        """What comes by itself, by a timer."""
        found: list[Heard] = []

        def look() -> bool:
            found.extend(self.peer.heard())
            return enough(found)

        wait_until("it was heard", look)
        return found


Serve = Callable[..., Service]


@contextlib.contextmanager
def services(lab: Lab, family: int, place: str) -> Iterator[Serve]:
    """What starts a service at the first site, with a peer as the arguments say (`Scripted`)."""
    made: list[Service] = []
    lab.sites[0].take_address(family)

    def serve(**peer: int) -> Service:
        one = Scripted(lab.sites[0], family, **peer)
        made.append(Service(lab, place, one, one.connect()))
        return made[-1]

    try:
        yield serve
    finally:
        for one in made:
            engine.abandon(one.sock)
        for site in lab.sites:
            site.unlock()
            site.drop_address(family)
        for host in lab.hosts:
            host.sent()


def pieces(data: bytes, begin: int, ack: int, size: int) -> list[Heard]:
    """Data in segments of at most `size` bytes, from an offset on."""
    return [
        Heard(ACK, begin + at, data[at : at + size], ack, 0) for at in range(0, len(data), size)
    ]


def stream_of(found: list[Heard], begin: int) -> bytes:
    """The data of segments that follow each other, none of it twice."""
    data = b""
    for one in found:
        assert one.seq == begin + len(data), found
        data += one.payload
    return data


def receive(
    service: Service,
    data: bytes,
    arrived: int,
    late: list[Heard],
    others: Iterable[int] = (),
    *,
    fin: bool = False,
    aside: Heard | None = None,
) -> None:
    """Be a receiver that has the first `arrived` bytes of `data`, and `others`, until it has all of
    it, from what was heard already and what comes by a timer. Each byte comes once, and so does a
    FIN, which counts as one behind the data. Set `aside` is a delayed acknowledgement."""
    peer, end = service.peer, len(data) + fin
    missing = set(range(arrived, end)).difference(others)
    while missing:
        for one in late or service.hear(bool):
            if one == aside:
                continue
            assert one.flags in (ACK, FIN | ACK), one
            size = len(one.payload) + (one.flags & FIN)
            part = range(one.seq, one.seq + size)
            assert size and missing.issuperset(part), f"{one} is not of what is missing"
            assert not one.flags & FIN or part.stop == end, one
            assert one.payload == data[part.start : part.stop], one
            missing.difference_update(part)
        late = []
        first = min(missing, default=end)
        blocks = (_behind(missing, first, end),) if peer.sack and missing else ()
        peer.say(ack=first, sacked=tuple(one for one in blocks if one))
    assert service.queued() == 0 and peer.heard() == []


def _behind(missing: set[int], hole: int, end: int) -> tuple[int, int] | None:
    """The first block that has arrived behind a hole."""
    start = next((at for at in range(hole, end) if at not in missing), None)
    if start is None:
        return None
    return start, next((at for at in range(start, end) if at in missing), end)


def largest(peer: Scripted) -> int:
    """Bytes in a full segment: the peer's MSS without the timestamps (RFC 6691)."""
    return MSS - 12 * peer.timestamps
