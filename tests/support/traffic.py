"""One TCP connection, driven by a plan over a wire that loses, turns over and doubles packets, and
moved by the engine meanwhile; every packet and every byte is checked.

The wire is `tests.support.tun`: this process carries each packet from one host to the other. So
which packet is lost is part of the plan and not of chance, and all of them are seen, which a rule
with `numgen` in the kernel would not give (and sch_netem is not everywhere). The lock, the capture
and the replay are the agents' own.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent import tcp as engine
from agent.kernel import uapi
from agent.tcp import closing, restoring, rtt
from agent.tcp.inventory import connection_of
from agent.tcp.stream import Stream
from agent.tcp.wake import Waking
from tests.support.sites import SERVICE, Lab, Site
from tests.support.tcp import state
from tests.support.tun import tun_hosts
from tests.support.wire import ENDS, End, Wire, other, signed

KINDS = {"ipv4": 4, "ipv6": 6, "mapped": 4}
MOVES = ("away", "fresh", "disconnect", "rollback")
SENT, UNSENT, BOTH, RECEIVED = "sent", "unsent", "sent and unsent", "received"
PEER_SHUT, SHUT = "the peer's window shut", "its own window shut"
STATES = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "CLOSING", "LAST_ACK")
SHAPES = (*STATES, SENT, UNSENT, BOTH, RECEIVED, PEER_SHUT, SHUT)
DEADLINE = 20.0  # seconds until all has arrived; the longest that is seen is less than one

_TCP, _SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET
_TAIL = 3000  # bytes that each end sends at last, to see that it still can
_ROUNDS_TO_FILL = 8
_WAKE = 0.05  # seconds that a release may wait for the peer before the next move
_PROBE_EVERY = 0.008
_ENDED = (uapi.TCP_CLOSE, uapi.TCP_TIME_WAIT)

Step = tuple[str | int | bool, ...]


@dataclass(frozen=True)
class Plan:
    """What is done to one connection. `steps` are rows of a method's name and its arguments."""

    steps: tuple[Step, ...]
    kind: str = "ipv4"
    active: bool = False  # the end that moves is the one that connected
    without: tuple[str, ...] = ()  # of `Lab.SYSCTLS`, what the client has switched off
    elsewhere: bool = False  # the destination has that switched off, and not the client
    congestion: str = "cubic"
    mss: int = 0  # TCP_MAXSEG of the client
    nodelay: bool = False
    send_buffers: tuple[int, int] = (0, 0)  # SO_SNDBUF of the service and the client
    receive_buffers: tuple[int, int] = (0, 0)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    with contextlib.ExitStack() as undo:
        hosts = undo.enter_context(tun_hosts("source", "destination", "client"))
        made = Lab(hosts, undo)
        for kind in ("ipv4", "ipv6"):  # a route's RTT is heeded once a connection has ended there
            for how in ("rollback", "away"):
                Run(made, Plan((("move", how, False, False, 0, 0),), kind)).go()
        yield made


@dataclass
class Run:
    """A plan on its way. Raises `AssertionError` where anything is not as it has to be."""

    lab: Lab
    plan: Plan
    trace: list[str] = field(default_factory=list)

    def go(self) -> None:
        plan, lab = self.plan, self.lab
        lab.switch_off(lab.client, () if plan.elsewhere else plan.without)
        lab.switch_off(lab.sites[1].host, plan.without if plan.elsewhere else ())
        self._family = KINDS[plan.kind]
        self._waking: Waking | None = None
        self._probed = 0.0
        with contextlib.ExitStack() as undo:
            undo.callback(self._clean)
            lab.sites[0].take_address(self._family)
            self._connect()
            for step in plan.steps:
                self.trace.append(f"-- {step}")
                getattr(self, f"do_{step[0]}")(*step[1:])
                self._look()
            self.trace.append("-- finish")
            self._finish()

    # --- steps

    def do_send(self, name: str, size: int) -> None:
        """As much as the socket takes."""
        end = self._ends[name]
        if end.shut:
            return
        data = memoryview(end.content)[end.sent : end.sent + size]
        with contextlib.suppress(BlockingIOError):
            while data:
                count = end.sock.send(data)
                end.sent += count
                data = data[count:]

    def do_fill(self, name: str) -> None:
        """What it takes to shut the other end's window, as that end reads nothing."""
        for _ in range(_ROUNDS_TO_FILL):
            self.do_send(name, 100_000)
            if not self._wire.carry_all():
                return

    def do_read(self, name: str, size: int) -> None:
        """As much as is there."""
        end, sender = self._ends[name], self._ends[other(name)]
        with contextlib.suppress(BlockingIOError):
            while size > 0 and not end.ended:
                data = end.sock.recv(size)
                if not data:
                    assert sender.shut and end.received == sender.sent, (
                        f"{name} reads the end after {end.received} bytes, {sender.sent} were sent"
                    )
                    end.ended = True
                    return
                after = end.received + len(data)
                assert after <= sender.sent, f"{name} reads more than was sent"
                wanted = sender.content[end.received : after]
                assert data == wanted, f"other bytes at {end.received} of what {name} reads"
                end.received = after
                size -= len(data)

    def do_shut(self, name: str) -> None:
        end = self._ends[name]
        if not end.shut:
            end.shut = True
            end.sock.shutdown(socket.SHUT_WR)

    def do_clamp(self, name: str, size: int) -> None:
        with contextlib.suppress(PermissionError):
            self._ends[name].sock.setsockopt(_TCP, uapi.TCP_WINDOW_CLAMP, size)

    def do_buffer(self, name: str, size: int) -> None:
        self._ends[name].sock.setsockopt(_SOL, socket.SO_RCVBUF, size)

    def do_carry(self, name: str, count: int) -> None:
        self._wire.carry(name, count)

    def do_lose(self, name: str, count: int) -> None:
        self._wire.lose(name, count)

    def do_delay(self, name: str, count: int) -> None:
        self._wire.delay(name, count)

    def do_double(self, name: str, count: int) -> None:
        self._wire.double(name, count)

    def do_flow(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self._wire.carry_all():
                return

    def do_wait(self, milliseconds: int) -> None:
        """For the kernel's timers; what is sent meanwhile stays on the wire."""
        time.sleep(milliseconds / 1000)
        self._wire.pull()

    def do_move(self, how: str, as_agent: bool, replay: bool, blackout: int, lose: int) -> None:
        """Move the service's end. `blackout`: packets that reach it while it is locked;
        `lose`: how many packets of its release are lost."""
        self._await_awake()
        service, here = self._ends["service"], self._wire.site
        if state(service.sock) == uapi.TCP_CLOSE:
            return  # it has ended: tests/kernel/test_tcp_closed.py
        there = self.lab.other(here) if how == "away" else here
        self._wire.pull()
        connection = connection_of(service.sock)
        for site in {here, there}:
            site.lock(connection)
        self._wire.carry("service", blackout)
        stream = engine.dump(service.sock)
        self.trace.append(f"     {_summary(stream)}")
        assert stream.state == state(service.sock)
        for shape in _shapes(stream):
            self.lab.moved.update((shape, f"{how}: {shape}"))
        self._nothing_comes_out()
        if how == "rollback":
            here.unlock()
            here.host.run(engine.release, service.sock)
        else:
            image = Stream.from_bytes(stream.to_bytes())
            assert service.isn is not None
            before = signed(image.send_seq - service.isn - 1) - 1
            service.early = before if rtt.early(image) else None
            self._rebuild(how, image, there)
            self._nothing_comes_out()
            if here is not there:
                here.drop_address(self._family)
                there.take_address(self._family)
                self._wire.site = there
            self._release(image, as_agent)
            here.unlock()
        found = state(service.sock)
        assert found == stream.state, f"is in {uapi.STATE_NAMES[found]}"
        if replay:
            self._replay([one for site in {here, there} for one in site.captured(connection)])
        self._wire.lose("client", lose)

    def _nothing_comes_out(self) -> None:
        assert not self._wire.pull(), "the service sends while it is locked"

    def _rebuild(self, how: str, image: Stream, there: Site) -> None:
        service = self._ends["service"]
        if how == "disconnect":
            engine.disconnect(service.sock)
            service.sock = there.host.run(engine.restore, image, service.sock)
        else:
            engine.abandon(service.sock)
            service.sock = there.host.run(engine.restore, image)

    def _release(self, stream: Stream, as_agent: bool) -> None:
        """As the agents do it for many, or as the library does."""
        site, sock = self._wire.site, self._ends["service"].sock
        waking = Waking(sock.dup(), stream, time.monotonic())
        if as_agent:
            inject = site.replayer.inject
            closing.settle(sock, stream, inject)
            self._nothing_comes_out()
            site.unlock()
            restoring.release(sock, stream, inject)
        else:
            site.unlock()
            site.host.run(engine.release, sock)
        waking.begin()
        self._waking, self._probed = waking, time.monotonic()

    def _replay(self, packets: list[bytes]) -> None:
        if self._waking is not None:
            self._waking.look()
        self._wire.site.replayer.replay(packets)
        if self._waking is not None:
            self._waking.disregard()

    # --- beginning and end

    def _connect(self) -> None:
        plan, lab = self.plan, self.lab
        number = next(_runs)
        ports = {"service": 2000 + number % 19997, "client": 22000 + number % 39989}
        prefix = "::ffff:" if plan.kind == "mapped" else ""
        addresses = {
            "service": prefix + SERVICE[self._family],
            "client": lab.client.address(self._family),
        }
        hosts = {"service": lab.sites[0].host, "client": lab.client}
        self._ends = {}
        for index, name in enumerate(ENDS):
            kind = socket.AF_INET6 if ":" in addresses[name] else socket.AF_INET
            sock = hosts[name].socket(kind, socket.SOCK_STREAM)
            self._ends[name] = End(name, sock)
            sock.setblocking(False)
            if plan.send_buffers[index]:
                sock.setsockopt(_SOL, socket.SO_SNDBUF, plan.send_buffers[index])
            if plan.receive_buffers[index]:
                sock.setsockopt(_SOL, socket.SO_RCVBUF, plan.receive_buffers[index])
            sock.setsockopt(_TCP, uapi.TCP_CONGESTION, plan.congestion.encode())
            sock.setsockopt(_TCP, uapi.TCP_NODELAY, plan.nodelay)
            sock.setsockopt(_SOL, socket.SO_REUSEADDR, 1)
            sock.bind((addresses[name], ports[name]))
        if plan.mss:
            self._ends["client"].sock.setsockopt(_TCP, uapi.TCP_MAXSEG, plan.mss)
        self._wire = Wire(lab, lab.sites[0], self._ends, {*ports.values()}, self.trace)

        accepting = "client" if plan.active else "service"
        host = addresses[accepting].removeprefix("::ffff:")
        if plan.active:
            host = prefix + host
        with self._ends[accepting].sock as listener:
            listener.listen(1)
            with contextlib.suppress(BlockingIOError):
                self._ends[other(accepting)].sock.connect((host, ports[accepting]))
            self.do_flow(3)
            self._ends[accepting].sock, _ = listener.accept()
        self._ends[accepting].sock.setblocking(False)

    def _finish(self) -> None:
        """All that was sent arrives, then a last word from each end, then both ends."""
        deadline = time.monotonic() + DEADLINE
        until = {name: end.sent + (0 if end.shut else _TAIL) for name, end in self._ends.items()}
        poll = select.poll()
        for host in self.lab.hosts:
            poll.register(host.device, select.POLLIN)
        while True:
            for name, end in self._ends.items():
                self.do_send(name, until[name] - end.sent)
                if end.sent == until[name]:
                    self.do_shut(name)
                self.do_read(name, 1 << 20)
            if not self._wire.carry_all():
                if all(end.ended and state(end.sock) in _ENDED for end in self._ends.values()):
                    break
                assert time.monotonic() < deadline, self._where()
                poll.poll(2)
            self._look()
        self._await_awake()

    def _where(self) -> str:
        return "; ".join(
            f"{end.name} is in {uapi.STATE_NAMES[state(end.sock)]}, has sent {end.sent}, "
            f"received {end.received}{' and the end' if end.ended else ''}"
            for end in self._ends.values()
        )

    def _look(self) -> None:
        """As agent.tcp.wake does while peers are asleep, but more often."""
        waking = self._waking
        if waking is None:
            return
        waking.look()
        if waking.awake:
            waking.sock.close()
            self._waking = None
        elif time.monotonic() - self._probed > _PROBE_EVERY:
            waking.probe()
            self._probed = time.monotonic()

    def _await_awake(self) -> None:
        deadline = time.monotonic() + _WAKE
        while self._waking is not None and time.monotonic() < deadline:
            self._wire.carry_all()
            self._look()
        if self._waking is not None:
            self._waking.sock.close()
            self._waking = None

    def _clean(self) -> None:
        """Without a word: nothing of this run may be in the way of the next."""
        if self._waking is not None:
            self._waking.sock.close()
        for end in self._ends.values():
            engine.abandon(end.sock)
        for site in self.lab.sites:
            site.unlock()
            site.drop_address(self._family)
        for host in self.lab.hosts:
            host.sent()


_runs = itertools.count()


def _shapes(stream: Stream) -> Iterator[str]:
    """Of `SHAPES` those that a stream has."""
    yield uapi.STATE_NAMES[stream.state]
    sent = len(stream.send_queue) - stream.unsent
    if sent or stream.unsent:
        yield BOTH if sent and stream.unsent else SENT if sent else UNSENT
    if stream.receive_queue:
        yield RECEIVED
    if not stream.window[1]:
        yield PEER_SHUT
    if not stream.window[3]:
        yield SHUT


def _summary(stream: Stream) -> str:
    return (
        f"{uapi.STATE_NAMES[stream.state]}, to send {len(stream.send_queue)} of which unsent "
        f"{stream.unsent}, to read {len(stream.receive_queue)}, window {stream.window}"
    )
