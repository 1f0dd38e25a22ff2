"""What an agent has on a host for the packets of a blackout, and looks at what it captured."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.netlock.render import Connection, Listener
from agent.tcp.capture import Capture
from agent.tcp.replay import Replayer, Segment, parse
from tests.support.netns import Host, wait_until
from tests.support.tcp import Pair, retransmits

_ID = "20261123-134501-7f3a9c"


class Agent:
    """Lock, capture and replayer on one host, as an agent has them."""

    def __init__(self, host: Host, addresses: list[str], **options: Any) -> None:
        self._host = host
        self._nftables = host.run(Nftables)
        self.capture = host.run(Capture, addresses, **options)
        self.replayer = host.run(Replayer)

    def lock(self, *connections: Connection, listeners: tuple[Listener, ...] = ()) -> None:
        self._run(render.lock(_ID, connections, listeners, stage="full"))

    def unlock(self) -> None:
        self._run(render.unlock(_ID))

    def await_syns(self, listener: Listener) -> list[bytes]:
        """The packets to a listener, once there are any."""
        packets: list[bytes] = []

        def look() -> bool:
            packets.extend(self.capture.drain(set(), [listener]))
            return bool(packets)

        wait_until("a SYN was captured", look)
        return packets

    def _run(self, script: str) -> None:
        self._host.run(self._nftables.run, script)

    def close(self) -> None:
        self._nftables.close()
        self.capture.close()
        self.replayer.close()


def drain_until(agent: Agent, connection: Connection, enough: Callable[[list[Segment]], bool]
                ) -> list[bytes]:  # fmt: skip
    packets: list[bytes] = []

    def look() -> bool:
        packets.extend(agent.capture.drain({connection}, ()))
        return enough(segments(packets))

    wait_until("enough was captured", look)
    return packets


def segments(packets: list[bytes]) -> list[Segment]:
    parsed = [parse(one) for one in packets]
    return [one for one in parsed if one is not None]


def payload_of(packets: list[bytes]) -> bytes:
    """The stream in captured packets; asserts that nothing is missing."""
    pieces: dict[int, bytes] = {}
    for one in segments(packets):
        (sequence,) = struct.unpack_from("!I", one.tcp, 4)
        pieces[sequence] = max(pieces.get(sequence, b""), bytes(one.payload), key=len)
    start = min(pieces)
    stream = b""
    for sequence in sorted(pieces):
        offset = sequence - start
        assert offset <= len(stream), "a hole in what was captured"
        stream = stream[:offset] + pieces[sequence] + stream[offset + len(pieces[sequence]) :]
    return stream


def send_while_locked(agent: Agent, pair: Pair, data: bytes) -> list[bytes]:
    """What is captured of `data`, as far as the peer's window lets it send."""
    connection = pair.connection()
    agent.lock(connection)
    agent.capture.drain(set(), ())  # what has been delivered already
    pair.client.setblocking(False)
    assert pair.client.send(data) == len(data)
    return drain_until(agent, connection, lambda found: retransmits(pair.client) >= 1)
