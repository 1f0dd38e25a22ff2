"""Wake the peers after the unlock: leave repair mode, then probe until each has answered."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from agent.kernel import uapi
from agent.tcp.restore import probe_again
from agent.tcp.stream import Stream, format_address

_SEGS_IN = struct.Struct("=I")
_POLL = 0.0005
_POLL_SLOW = 0.01
# Seconds after the release at which a stream that has not answered is probed again. A peer
# answers out-of-window segments at most every 0.5 s (tcp_invalid_ratelimit), so more is no use.
_PROBES_AT = (0.05, 0.2, 0.6, 1.2)
_GIVE_UP = 1.8
NO_ANSWER = -1.0


@dataclass(slots=True)
class Waking:
    """One stream on its way from the release to the peer's first answer."""

    sock: socket.socket
    stream: Stream
    released: float = 0.0
    replayed: int = 0  # segments we injected ourselves
    probes: int = 1
    wake_ms: float = NO_ANSWER

    def answered(self) -> bool:
        info = self.sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, uapi.TCP_INFO_SIZE)
        (segments,) = _SEGS_IN.unpack_from(info, uapi.TCP_INFO_SEGS_IN_OFFSET)
        return int(segments) > self.replayed

    def report(self) -> dict[str, Any]:
        return {
            "local": format_address(self.stream.local),
            "remote": format_address(self.stream.remote),
            "wake_ms": self.wake_ms,
            "probes": self.probes,
        }


async def wake(streams: list[Waking]) -> None:
    """Fill in `wake_ms` and `probes` of each released stream; bounded in time and probes."""
    if not streams:
        return
    start = time.monotonic()
    asleep = streams
    probes = list(_PROBES_AT)
    while asleep:
        now = time.monotonic()
        still = []
        for waking in asleep:
            if waking.answered():
                waking.wake_ms = (now - waking.released) * 1000
            else:
                still.append(waking)
        asleep = still
        if now - start > _GIVE_UP:
            return
        if probes and now - start > probes[0]:
            probes.pop(0)
            for waking in asleep:
                probe_again(waking.sock, waking.stream)
                waking.probes += 1
        await asyncio.sleep(_POLL if now - start < 0.02 else _POLL_SLOW)
