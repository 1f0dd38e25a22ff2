"""A peer that is a script: the test decides each segment it sends, and sees each that it is sent.

It stands on the wire of a `tests.support.tun` host. That host handles what it receives before
`say` returns, so what `heard` gives then is the whole answer: later come its timers only.
"""

from __future__ import annotations

import itertools
import socket
from dataclasses import dataclass, field

from agent.netlock.render import Connection
from tests.support.netns import wait_until
from tests.support.sites import SERVICE, Site
from tests.support.tcp import AF
from tests.support.tun import ACK, SYN, Packet
from tests.support.wire import signed

ADDRESS = {4: "10.99.0.9", 6: "fd99::9"}
SERVICE_PORT = 7000
_ports = itertools.cycle(range(40_000, 60_000))  # none again while TIME_WAIT has it
MSS, WINDOW, SCALE = 1000, 20_000, 7
_ISN = 0xFFFFFF00  # its numbers wrap around within the first bytes
_CLOCK = 5_000_000
_MASK = 0xFFFFFFFF


@dataclass
class Scripted:
    """The peer's side of one connection. Offsets count from the first byte of either direction."""

    site: Site  # where its segments go
    family: int
    timestamps: bool = True
    sack: bool = True
    scaled: bool = True
    window: int = WINDOW  # bytes that it offers
    port: int = field(default_factory=lambda: next(_ports))
    sent: int = 0  # of our bytes and our FIN
    isn: int = 0  # the service's
    clock: int = _CLOCK
    echo: int = 0  # the service's last TSval
    right_edge: int = 0  # of the service's window, as an offset
    scale: int = 0  # the service's
    _open: bool = field(default=False)

    @property
    def connection(self) -> Connection:
        return Connection(
            self.family, SERVICE[self.family], SERVICE_PORT, ADDRESS[self.family], self.port
        )

    def connect(self, **options: int) -> socket.socket:
        """Open the connection to a listener of its own; the service's end of it."""
        host = self.site.host
        with host.socket(AF[self.family], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVICE[self.family], SERVICE_PORT))
            listener.listen(1)
            self._send(SYN, seq=_ISN)
            (answer,) = self._packets()
            assert answer.flags == SYN | ACK
            self._opened(answer)
            self.say()
            sock, _ = listener.accept()
        sock.setblocking(False)
        assert self.heard() == []
        return sock

    def await_syn(self) -> Packet:
        """The first SYN of a connection that the service opens."""
        (packet,) = self._packets()
        assert packet.flags == SYN
        return packet

    def await_syn_again(self) -> Packet:
        """The next SYN, by its timer; nothing else comes with it."""
        found: list[Packet] = []

        def look() -> bool:
            found.extend(self._packets())
            return bool(found)

        wait_until("the SYN came again", look)
        (packet,) = found
        return packet

    def accept(self, syn: Packet) -> None:
        """Answer a SYN and take the acknowledgement for it."""
        self._opened(syn)
        self._open = False
        self._send(SYN | ACK, seq=_ISN, ack=syn.seq + 1)
        self._open = True

    def _opened(self, packet: Packet) -> None:
        assert packet.mss is not None
        self.isn, self._open = packet.seq, True
        self.scale = (packet.scale or 0) if self.scaled else 0
        self.timestamps = self.timestamps and packet.timestamps is not None
        if packet.timestamps is not None:
            self.echo = packet.timestamps[0]

    def say(
        self,
        payload: bytes = b"",
        flags: int = ACK,
        *,
        seq: int | None = None,
        ack: int = 0,
        sacked: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """Send a segment: `seq` is where it begins (by default behind what was sent), `ack` how
        many bytes of the service have arrived."""
        begin = self.sent if seq is None else seq
        self._send(flags, payload, _ISN + 1 + begin, self.isn + 1 + ack, sacked)
        if seq is None:
            self.sent += len(payload) + (flags & 1)

    def _send(
        self, flags: int, payload: bytes = b"", seq: int = 0, ack: int = 0,
        sacked: tuple[tuple[int, int], ...] = (),
    ) -> None:  # fmt: skip
        self.clock += 1
        shift = SCALE if self.scaled and self._open else 0
        packet = Packet(
            ADDRESS[self.family], SERVICE[self.family], self.port, SERVICE_PORT,
            seq & _MASK, ack & _MASK, flags, min(self.window >> shift, 0xFFFF), payload=payload,
        )  # fmt: skip
        opening = bool(flags & SYN)
        blocks = [
            ((self.isn + 1 + start) & _MASK, (self.isn + 1 + end) & _MASK) for start, end in sacked
        ]
        packet = packet.with_options(
            timestamps=(self.clock, self.echo) if self.timestamps else None,
            sacked=blocks,
            mss=MSS if opening else None,
            scale=SCALE if opening and self.scaled else None,
            sack_allowed=opening and self.sack,
        )
        self.site.host.receive(packet.encode())

    def heard(self) -> list[Heard]:
        """What the service has sent since the last call, each checked for what must always hold."""
        return [self._look(packet) for packet in self._packets()]

    def _packets(self) -> list[Packet]:
        found = [Packet.decode(one) for one in self.site.host.sent()]
        return [one for one in found if one is not None and one.destination_port == self.port]

    def _look(self, packet: Packet) -> Heard:
        stamps = packet.timestamps
        assert (stamps is not None) == self.timestamps, packet
        if stamps is not None:
            assert signed(stamps[0] - self.echo) >= 0, f"time goes back: {packet}"
            self.echo = stamps[0]
        ack = signed(packet.ack - _ISN - 1)
        edge = ack + (packet.window << self.scale)
        assert edge >= self.right_edge, f"a window taken back: {packet}"
        self.right_edge = edge
        return Heard(
            packet.flags & ~0x08, signed(packet.seq - self.isn - 1), packet.payload, ack, edge
        )


@dataclass(frozen=True)
class Heard:
    """A segment of the service. PSH is left out: it tells nothing."""

    flags: int
    seq: int  # offset
    payload: bytes
    ack: int  # offset
    edge: int = field(compare=False)  # right edge of its window, as an offset

    def __repr__(self) -> str:
        size = f"{self.seq}+{len(self.payload)}"
        return f"<{self.flags:#x} {size} ack {self.ack} to {self.edge}>"


def probe(seq: int, ack: int) -> Heard:
    """The window probe behind `seq` bytes sent and `ack` received: the byte before, without data
    (tcp_xmit_probe_skb() in net/ipv4/tcp_output.c)."""
    return Heard(ACK, seq - 1, b"", ack, 0)
