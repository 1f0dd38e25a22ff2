"""The wire between a service that moves and its client: it carries, loses, delays and doubles
packets as it is told, and checks each one that either end sends."""

from __future__ import annotations

import random
import socket
from collections import deque
from dataclasses import dataclass, field

from agent.kernel import uapi
from tests.support.sites import Lab, Site
from tests.support.tcp import state
from tests.support.tun import ACK, FIN, RST, SYN, Packet

ENDS = ("service", "client")  # the end that moves, and its peer

_MASK = 0xFFFFFFFF
# What each end sends. Nothing comes twice, so that no byte can pass for another.
_CONTENT = {name: random.Random(name).randbytes(1 << 21) for name in ENDS}


@dataclass
class End:
    """One end of a connection: what it has done, and what its packets have said."""

    name: str
    sock: socket.socket
    sent: int = 0  # bytes that its socket took
    shut: bool = False
    received: int = 0
    ended: bool = False  # it has read the peer's end
    isn: int | None = None
    scale: int = 0
    right_edge: int = 0  # of the window that it has advertised, from the peer's first byte
    clock: int | None = None  # the last TSval
    early: int | None = None  # of a byte that its peer has, and that agent.tcp.rtt has made up

    @property
    def content(self) -> bytes:
        return _CONTENT[self.name]


@dataclass
class Wire:
    lab: Lab
    site: Site  # where packets to the service go
    ends: dict[str, End]
    ports: set[int]
    trace: list[str] = field(default_factory=list)
    _queues: dict[str, deque[bytes]] = field(default_factory=dict)  # by receiver

    def __post_init__(self) -> None:
        self._queues = {name: deque() for name in ENDS}

    def pull(self) -> int:
        """Take what the hosts have sent; how many packets the service's were.

        Raises `AssertionError` where one of them is not as it has to be.
        """
        count = 0
        for host in self.lab.hosts:
            name = "service" if host is self.lab.client else "client"
            for data in host.sent():
                packet = Packet.decode(data)
                if packet is None or {packet.source_port, packet.destination_port} != self.ports:
                    continue  # of an earlier run
                count += name == "client"
                self._check(self.ends[other(name)], self.ends[name], packet)
                self._queues[name].append(data)
        return count

    def carry(self, name: str, count: int) -> None:
        """The next packets arrive at an end."""
        self.pull()
        queue = self._queues[name]
        for _ in range(min(count, len(queue))):
            self._deliver(name, queue.popleft())

    def carry_all(self) -> int:
        """All packets that are there arrive, in their order; how many that was."""
        self.pull()
        count = 0
        for name, queue in self._queues.items():
            count += len(queue)
            while queue:
                self._deliver(name, queue.popleft())
        return count

    def lose(self, name: str, count: int) -> None:
        self.pull()
        queue = self._queues[name]
        for _ in range(min(count, len(queue))):
            self.trace.append(f"     lost: {Packet.decode(queue.popleft())}")

    def delay(self, name: str, count: int) -> None:
        """The next packet comes after `count` others, or those that are there."""
        self.pull()
        if queue := self._queues[name]:
            queue.insert(count, queue.popleft())

    def double(self, name: str, count: int) -> None:
        """The next packet comes once more, after `count` others."""
        self.pull()
        if queue := self._queues[name]:
            queue.insert(count, queue[0])

    def _deliver(self, name: str, data: bytes) -> None:
        host = self.lab.client if name == "client" else self.site.host
        host.receive(data)

    # --- what may be on the wire at all

    def _check(self, sender: End, receiver: End, packet: Packet) -> None:
        self.trace.append(f"  {sender.name[0]} {_relative(sender, receiver, packet)}")
        if packet.flags & RST:
            # What follows after both have ended finds no socket: RFC 9293, section 3.10.7.1
            over = all(state(end.sock) == uapi.TCP_CLOSE for end in (sender, receiver))
            assert over, f"a reset from the {sender.name}: {packet}"
            return
        if packet.flags & SYN:
            sender.isn = packet.seq
            sender.scale = packet.scale or 0
            if packet.flags & ACK and packet.scale is None:
                receiver.scale = 0
            return
        self._check_bytes(sender, packet)
        if (stamps := packet.timestamps) is not None:
            back = sender.clock is not None and signed(stamps[0] - sender.clock) < 0
            assert not back, f"time goes back from {sender.clock}: {packet}"
            sender.clock = stamps[0]
        assert receiver.isn is not None
        edge = signed(packet.ack - receiver.isn - 1)
        assert edge <= receiver.sent + receiver.shut, f"acknowledges what was not sent: {packet}"
        # A full window without a scale ends one octet before, when it is said before the peer's FIN
        # has been taken again; nothing is to come there.
        edge += packet.window << sender.scale
        # Without memory for what has come a window is shut at once (tcp_select_window(), 6.5). In
        # TIME_WAIT the kernel says what it has kept in 16 bits (tw_rcv_wnd).
        held = edge >= sender.right_edge - receiver.shut or packet.window == 0
        assert held or state(sender.sock) == uapi.TCP_CLOSE, (
            f"a window taken back from {sender.right_edge} to {edge}: {packet}"
        )
        sender.right_edge = edge

    def _check_bytes(self, sender: End, packet: Packet) -> None:
        assert sender.isn is not None
        offset = signed(packet.seq - sender.isn - 1)
        end = offset + len(packet.payload)
        assert end <= sender.sent + sender.shut, f"beyond what {sender.name} has sent: {packet}"
        wanted = sender.content[offset:end] if packet.payload else b""
        if sender.early is not None and offset <= sender.early < end:
            # A timer of this lab may run out between the unlock and the release.
            at = sender.early - offset
            wanted = wanted[:at] + packet.payload[at : at + 1] + wanted[at + 1 :]
        assert packet.payload == wanted, f"other bytes from {sender.name} at {offset}: {packet}"
        if packet.flags & FIN:
            assert sender.shut and end == sender.sent, f"an end at {end} of {sender.sent}"


def other(name: str) -> str:
    return ENDS[1 - ENDS.index(name)]


def signed(number: int) -> int:
    """The difference of two sequence numbers (RFC 9293, section 3.4)."""
    return ((number + (1 << 31)) & _MASK) - (1 << 31)


def _relative(sender: End, receiver: End, packet: Packet) -> str:
    """A packet in words, numbers from the first byte on, a window by its right edge."""
    text = str(packet)
    if packet.flags & SYN or sender.isn is None or receiver.isn is None:
        return text
    seq, ack = signed(packet.seq - sender.isn - 1), signed(packet.ack - receiver.isn - 1)
    window = packet.window << sender.scale
    head, _, rest = text.partition("] ")
    options = rest.partition(" win ")[2].partition(" ")[2]
    return f"{head}] {seq}+{len(packet.payload)} ack {ack} to {ack + window} {options}"
