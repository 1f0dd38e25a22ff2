"""The link between the two agents: records over a connection of their own, or relayed.

`agent.login` makes that connection. Where the source cannot reach the destination's port, the same
records travel as events through the orchestrator.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from agent.errors import AgentError, PeerLost, ProtocolError, shown
from agent.fault import CORRUPT, CUT, HANG, damage, seconds_of
from agent.image.records import MAX_BODY, Record, RecordDecoder, RecordEncoder
from agent.image.seal import Seal
from agent.image.squeeze import Squeezer

_HIGH_WATER = 8 << 20  # bytes of records received and not yet taken
_RELAY_CHUNK = 1 << 20
_JOIN = 64 << 10
_RELAYED = 16 << 20  # bytes on their way through the orchestrator, which cannot be held up
_MOST_RELAYED = _RELAYED + 2 * MAX_BODY  # what is sent before there is a pause goes beyond it
_DISCARDED = 64 << 10
ALIVE = "alive"  # a record that says nothing else

Write = Callable[[bytes | memoryview], None]


class Link:
    """Records in both directions, in order. A transport feeds it and carries what it sends."""

    def __init__(self, phase: Callable[[], str]) -> None:
        """`phase` names the phase that an error is to name, when the link breaks."""
        self._phase = phase
        self._squeezer: Squeezer | None = None
        self._encoder = RecordEncoder()
        self._decoder = RecordDecoder()
        self._records: deque[tuple[Record, int]] = deque()
        self._waiting = 0  # bytes of the records that wait
        self._holding = False  # more is there than is to wait, and the transport is to pause
        self.given = 0  # bytes of all records that were sent, before compression
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: AgentError | None = None  # nothing more can be received
        self._gone: AgentError | None = None  # nothing more can be sent
        self._write: Write | None = None
        self._close: Callable[[], None] | None = None
        self._end_output: Callable[[], None] = self.close
        self._pause: Callable[[bool], None] = _nothing
        self._claimed: Callable[[int], None] = _nothing
        self.opened = asyncio.Event()
        self.lost = asyncio.Event()  # nothing more will come than what is queued
        self.over = asyncio.Event()  # the transport has gone
        self.relayed = False
        self.faults: dict[str, str] = {}  # by kind of record
        self._spoilt: str | None = None
        self._deaf = False
        self._discarded = memoryview(bytearray(_DISCARDED))

    # --- for the two drivers

    def send(self, record: Record) -> int:
        """Queue a record; returns the bytes it is as it travels. Raises `PeerLost`."""
        if self._gone is not None:
            raise self._gone
        if self.faults:
            self._inject(record["kind"])
        assert self._write is not None, "the link is not open"
        header, body = self._encoder.encode(record)
        self.given += self._encoder.size
        if self._spoilt is not None:
            whole = len(body)
            header, body = damage(self._spoilt, header, bytes(body))
            self._spoilt = None
            if len(body) < whole:
                self._write(header + body)
                self._end_output()
                return len(header) + len(body)
        try:
            if len(body) < _JOIN:  # one write, one packet
                self._write(header + bytes(body))
            else:
                self._write(header)
                self._write(body)
        except OSError as error:  # the channel is closed, or half of it
            self._gone = self._lost(str(error))
            raise self._gone from error
        return len(header) + len(body)

    def spoil(self, action: str) -> None:
        """Have the next record damaged, as `agent.fault` names it."""
        self._spoilt = action

    def _inject(self, kind: str) -> None:
        """Carry out the fault that is asked for when a record of this kind is sent."""
        action = self.faults.pop(kind, None)
        if action == CUT:
            self.close()
            assert self._gone is not None
            raise self._gone
        if action == HANG:
            self._deaf, self._write = True, lambda _data: None
        elif action == CORRUPT:
            self.spoil(action)
        elif action is not None:
            self._hold(seconds_of(action))

    def _hold(self, seconds: float) -> None:
        """Keep what is sent for a time."""
        kept: list[bytes | memoryview] = []
        write = self._write
        assert write is not None
        self._write = kept.append

        def let_go() -> None:
            self._write = write
            with contextlib.suppress(OSError):
                for data in kept:
                    write(data)

        asyncio.get_running_loop().call_later(seconds, let_go)

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        await self._writable.wait()
        if self._gone is not None:
            raise self._gone

    async def receive(self) -> Record:
        """The next record. Raises what broke the link, once all records before it are taken."""
        while not self._records:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        record, size = self._records.popleft()
        self._waiting -= size
        self._claimed(size)
        if self._holding and self._waiting < _HIGH_WATER // 2:
            self._holding = False
            self._take(self._decoder.took(0))
            if not self._holding:
                self._pause(False)
        return record

    def close(self) -> None:
        """End the link; what was sent before still arrives."""
        self._failed(self._lost("closed"))
        self._gone = self._gone or self._failure
        if self._close is not None:
            self._close()

    def queued(self, kind: str) -> Record | None:
        """A record of this kind that has come and was not taken yet."""
        return next((record for record, _ in self._records if record["kind"] == kind), None)

    # --- for the transport

    def attach(
        self,
        write: Write,
        close: Callable[[], None],
        pause: Callable[[bool], None] | None = None,
        end_output: Callable[[], None] | None = None,
        claimed: Callable[[int], None] | None = None,
    ) -> None:
        """`pause`: whether nothing is to be received; `claimed`: so many bytes were taken."""
        self._write, self._close = write, close
        self._pause, self._claimed = pause or _nothing, claimed or _nothing
        self._end_output = end_output or self.close
        self.opened.set()

    def squeeze(self, squeezer: Squeezer | None) -> None:
        """Compress what pays; before the first record."""
        self._squeezer = squeezer
        self._encoder = RecordEncoder(None, squeezer)

    def seal(self, sending: Seal, receiving: Seal) -> None:
        """How records are kept safe on this transport, from its first one on."""
        self._encoder = RecordEncoder(sending, self._squeezer)
        self._decoder = RecordDecoder(receiving)

    def takes(self, seconds: float) -> None:
        """What the network takes for a byte, where it is what holds the sender up."""
        if self._squeezer is not None:
            self._squeezer.wire = seconds

    def room(self) -> memoryview:
        """Where the next bytes that arrive go; `took` is told how many did."""
        if self._failure is not None or self._deaf:
            return self._discarded
        return self._decoder.room()

    def took(self, size: int) -> None:
        self._take(self._decoder.took(size))

    def feed(self, data: bytes) -> None:
        """Bytes that arrived elsewhere."""
        self._take(self._decoder.feed(data))

    def _take(self, records: Iterator[Record]) -> None:
        if self._failure is not None or self._deaf:
            return
        try:
            for record in records:
                if record["kind"] == ALIVE:
                    continue
                self._records.append((record, self._decoder.size))
                self._waiting += self._decoder.size
                self._arrived.set()
                if self.relayed and self._waiting > _MOST_RELAYED:
                    raise ProtocolError(detail="more is relayed than can be taken")
                if not self.relayed and self._waiting > _HIGH_WATER:
                    self._holding = True
                    self._pause(True)
                    break
        except AgentError as error:
            self._failed(error)

    def input_ended(self) -> None:
        """Nothing more will come."""
        self._check_end()
        self._failed(self._lost("the other agent ended it"))

    def ended(self, error: BaseException | None) -> None:
        """The transport is gone."""
        self._check_end()
        lost = self._lost(str(error) if error else "the other agent has gone")
        self._gone = self._gone or lost
        self._failed(lost)
        self.over.set()

    def _check_end(self) -> None:
        try:
            if not self._holding:
                self._decoder.end()
        except AgentError as truncated:
            self._failed(truncated)

    def writable(self, yes: bool) -> None:
        if yes:
            self._writable.set()
        else:
            self._writable.clear()

    def _lost(self, detail: str) -> PeerLost:
        return PeerLost(phase=self._phase(), detail=detail)

    def _failed(self, error: AgentError) -> None:
        if self._failure is None:
            self._failure = error
        self.lost.set()
        self._arrived.set()
        self._writable.set()


def _nothing(_: object) -> None:
    """There is no transport that wants to know."""


class Relay:
    """Carries a link as events of the control channel.

    The events are {"data": bytes}, none of them for the end, and {"taken": int}: of the bytes that
    were sent so many were taken, and as many more may follow.
    """

    def __init__(self, link: Link, send_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._link = link
        self._send_event = send_event
        self._acknowledged = 0  # bytes of those that the link was given
        self._taken = 0  # bytes that the other end was not told of
        self._written = 0  # bytes, which may be compressed
        self._held_up = (0.0, 0)  # since when, and what was acknowledged then

    def open(self) -> None:
        self._link.relayed = True
        end = {"data": b""}
        close = functools.partial(self._send_event, "relay", end)
        self._link.attach(self._write, close, claimed=self._claimed)

    def _write(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), _RELAY_CHUNK):
            self._send_event("relay", {"data": bytes(data[start : start + _RELAY_CHUNK])})
        self._written += len(data)
        if self._link.given - self._acknowledged > _RELAYED and not any(self._held_up):
            self._held_up = time.monotonic(), self._acknowledged
            self._link.writable(False)

    def _claimed(self, size: int) -> None:
        self._taken += size
        if self._taken > _RELAYED // 4:
            self._send_event("relay", {"taken": self._taken})
            self._taken = 0

    def event(self, data: dict[str, Any]) -> None:
        """A "relay" event has come from the orchestrator. Raises `ProtocolError`."""
        match data:
            case {"data": bytes(piece)}:
                self._received(piece)
            case {"taken": int(size)} if 0 < size <= self._link.given - self._acknowledged:
                self._acknowledged += size
                if self._link.given - self._acknowledged <= _RELAYED // 2 and any(self._held_up):
                    self._measure(*self._held_up)
                    self._held_up = (0.0, 0)
                    self._link.writable(True)
            case _:
                raise ProtocolError(detail=f"{shown(data)} was to be relayed")

    def _measure(self, begin: float, acknowledged: int) -> None:
        passed = (self._acknowledged - acknowledged) * self._written / self._link.given
        self._link.takes((time.monotonic() - begin) / passed)

    def _received(self, piece: bytes) -> None:
        if not self._link.opened.is_set():
            self.open()
        if not self._link.relayed:
            raise ProtocolError(detail="something was relayed beside the link")
        if piece:
            self._link.feed(piece)
        else:
            self._link.ended(None)


def reached_address() -> str | None:
    """The address at which this host's sshd was reached (SSH_CONNECTION, ssh(1))."""
    fields = os.environ.get("SSH_CONNECTION", "").split()
    return fields[2] if len(fields) == 4 else None
