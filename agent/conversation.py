"""The source's half of what the two agents say to each other over the link.

docs/architecture.md has the whole conversation. Every word of the destination is awaited by
name; what breaks it, or a "failed", is raised to whoever waits and told to `on_failure`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from agent.errors import AgentError, ProtocolError, from_wire, shown
from agent.image.records import Record
from agent.link import Link

_MAX_PHASE = 40  # characters of a phase's name
MAX_WAITING = 8  # words of one kind that nobody has asked for yet
FROM_DESTINATION = (
    "pong", "locked", "time_waits_held", "prepared", "running", "committed", "awake",
)  # fmt: skip

Taker = Callable[[Record], Awaitable[None]]


class Conversation:
    """Reads the link until it ends."""

    def __init__(self, link: Link, on_failure: Callable[[AgentError], None]) -> None:
        self._link = link
        self._takers: dict[str, Taker] = {}
        self._on_failure = on_failure
        self._records: dict[str, deque[Record]] = {kind: deque() for kind in FROM_DESTINATION}
        self._news = asyncio.Event()
        self._failure: AgentError | None = None
        self.refused = False  # the destination said "failed": it has undone everything
        self.failed_phase: str | None = None  # the destination's, with `refused`
        self._task = asyncio.create_task(self._read())

    async def expect(self, *kinds: str) -> Record:
        """The next record of one of these kinds. Raises what ended the conversation."""
        while True:
            for kind in kinds:
                if records := self._records[kind]:
                    return records.popleft()
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()

    def on(self, taker: Taker, *kinds: str) -> None:
        """Have records of these kinds taken as they come; meanwhile no other is read.

        `taker` may raise `AgentError`, which ends the conversation.
        """
        self._takers.update(dict.fromkeys(kinds, taker))

    def heard(self, kind: str) -> bool:
        """Whether a record of this kind waits."""
        return bool(self._records[kind])

    async def last_word(self, seconds: float) -> AgentError | None:
        """The destination's own reason, if it gives one while the link still lasts."""
        await asyncio.wait({self._task}, timeout=seconds)
        return self._failure if self.refused else None

    @property
    def over(self) -> bool:
        return self._failure is not None

    async def _read(self) -> None:
        try:
            while True:
                record = await self._link.receive()
                taker = self._takers.get(record["kind"])
                if taker is not None:
                    await taker(record)
                    continue
                self._take(record)
                self._news.set()
        except AgentError as error:
            self._failure = error
            self._news.set()
            self._on_failure(error)

    def _take(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "failed":
            self.refused = True
            phase = record.get("phase")
            self.failed_phase = phase[:_MAX_PHASE] if isinstance(phase, str) else None
            raise from_wire(record.get("error"))
        records = self._records.get(kind)
        if records is None:
            raise ProtocolError(detail=f"the destination sent {shown(kind)}")
        if len(records) >= MAX_WAITING:
            raise ProtocolError(detail=f"the destination sent {kind} over and over")
        records.append(record)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
