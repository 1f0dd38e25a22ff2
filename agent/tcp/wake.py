"""Wake the peers after the unlock: leave repair mode, then probe until each has answered."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.kernel import uapi
from agent.tcp.restoring import probe_again
from agent.tcp.rtt import early
from agent.tcp.steal import state_of
from agent.tcp.stream import Stream, format_address

_MAPPED = "::ffff:"
_SYN, _SYN_ACK = 0x02, 0x12
_PORTS = struct.Struct("!HH")
_SEGS_IN = struct.Struct("=I")
_POLL = 0.0005
_POLL_SLOW = 0.01
# Seconds after the release at which a stream that has not answered is probed again. A peer
# answers out-of-window segments at most every 0.5 s (tcp_invalid_ratelimit), so more is no use.
_PROBES_AT = (0.05, 0.2, 0.6, 1.2)
GIVE_UP = 1.8
_AT_ONCE = 64  # probes before others have their turn
NO_ANSWER = -1.0
_NOT_ASLEEP = {uapi.TCP_FIN_WAIT2, uapi.TCP_SYN_SENT}


@dataclass(slots=True)
class Waking:
    """One stream on its way from the release to the peer's first answer."""

    sock: socket.socket
    stream: Stream
    released: float = 0.0
    ignored: int = 0  # segments received that say nothing of the peer being awake
    probes: int = 1  # 0: it was released in silence
    wake_ms: float = NO_ANSWER

    def begin(self) -> None:
        """The stream has been released. What was injected to close it again is no answer.

        Only a connection that was established then has sent a probe; in FIN_WAIT2 and SYN_SENT
        the peer has nothing to be woken for.
        """
        if self.stream.state in _NOT_ASLEEP:
            self.wake_ms, self.probes = 0.0, 0
        elif self.stream.state != uapi.TCP_ESTABLISHED or early(self.stream):
            self.disregard()

    @property
    def key(self) -> bytes:
        """What `endpoints` gives for the peer's packets."""
        (local, port), (remote, remote_port) = self.stream.local, self.stream.remote
        local, remote = local.removeprefix(_MAPPED), remote.removeprefix(_MAPPED)
        family = socket.AF_INET6 if ":" in local else socket.AF_INET
        addresses = socket.inet_pton(family, remote) + socket.inet_pton(family, local)
        return addresses + _PORTS.pack(remote_port, port)

    @property
    def awake(self) -> bool:
        return self.wake_ms != NO_ANSWER

    def look(self) -> None:
        """See whether the peer has answered by now; then our copy of the socket is closed.

        As long as we hold it, a close by the process would not reach the peer.
        """
        if not self.awake and self._received() > self.ignored:
            self.wake_ms = (time.monotonic() - self.released) * 1000
            self.sock.close()

    def probe(self) -> None:
        """Ask the peer once more; the kernel only does so in ESTABLISHED."""
        if state_of(self.sock) == uapi.TCP_ESTABLISHED:
            probe_again(self.sock, self.stream)
            self.probes += 1

    def disregard(self) -> None:
        """What was received so far came from us."""
        if not self.awake:
            self.ignored = self._received()

    def _received(self) -> int:
        info = self.sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, uapi.TCP_INFO_SIZE)
        (segments,) = _SEGS_IN.unpack_from(info, uapi.TCP_INFO_SEGS_IN_OFFSET)
        return int(segments)

    def report(self) -> dict[str, Any]:
        return {
            "local": format_address(self.stream.local),
            "remote": format_address(self.stream.remote),
            "wake_ms": self.wake_ms,
            "probes": self.probes,
        }


async def wake(streams: list[Waking]) -> None:
    """Fill in `wake_ms` and `probes` of each released stream; bounded in time and probes."""
    for seconds in steps(streams):
        await asyncio.sleep(seconds)


def steps(streams: list[Waking]) -> Iterator[float]:
    """The same, step by step; yields the seconds to wait before the next."""
    for waking in streams:
        if waking.awake:
            waking.sock.close()
    start = time.monotonic()
    asleep = [waking for waking in streams if not waking.awake]
    for number, waking in enumerate(asleep):
        if waking.probes == 0:
            waking.look()  # what was replayed may have woken it
            if not waking.awake:
                waking.probe()
            if number % _AT_ONCE == 0:
                yield 0
    probes = list(_PROBES_AT)
    while True:
        for waking in asleep:
            waking.look()
        asleep = [waking for waking in asleep if not waking.awake]
        elapsed = time.monotonic() - start
        if not asleep or elapsed > GIVE_UP:
            return
        if probes and elapsed > probes[0]:
            probes.pop(0)
            for waking in asleep:
                waking.probe()
        yield _POLL if elapsed < 0.02 else _POLL_SLOW


def endpoints(packet: bytes) -> bytes:
    """Addresses and ports of a TCP packet, source before destination, as on the wire; b"" where
    they are not whole."""
    start = _tcp_start(packet)
    if len(packet) < start + _PORTS.size:
        return b""
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + packet[start : start + _PORTS.size]


def opens(packet: bytes) -> bool:
    """Whether a TCP packet is the SYN of a new connection (RFC 9293, section 3.5)."""
    flags = packet[_tcp_start(packet) + 13 :][:1]
    return bool(flags) and flags[0] & _SYN_ACK == _SYN


def _tcp_start(packet: bytes) -> int:
    if packet[:1] and packet[0] >> 4 == 4:
        return max((packet[0] & 15) * 4, 20)
    # A packet over 64 KiB that GRO has made has a hop-by-hop header of 8 bytes (RFC 2675).
    return 48 if packet[6:7] == b"\0" else 40
