"""The run from the outside: both agents are told to run, and their two reports make one ending.

They do the blackout between themselves. This side relays where they do not reach each other,
brings a source in doubt the destination's word, and says what is known where a host is lost.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.fault import ORCHESTRATOR, Faults
from orchestrator.agent_client import AgentClient, DestinationPrepared, Facts
from orchestrator.errors import AgentSilent, MemoryMissing, OutcomeUnknown
from orchestrator.migration.result import (
    IN_DOUBT,
    MIGRATED,
    POST_COPY,
    RUNNING,
    DestinationReport,
    SourceReport,
    destination_report,
    source_report,
)
from orchestrator.relay import relay

SOURCE_SIDE = 90.0  # seconds for the source's report after the destination's: it may wait for CRIU
OTHER_SIDE = 15.0  # seconds for the second report, once the first has come
SETTLING = 20.0  # seconds for a destination that nobody talks to any more to settle by itself

_R = TypeVar("_R", SourceReport, DestinationReport)


class Listener(Protocol):
    """Is told of what happens in a run; an event names its "role" and "host"."""

    def phase(self, event: dict[str, Any]) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended; `doubt` is the error of an outcome that is in doubt."""

    outcome: str
    source: SourceReport | None
    destination: DestinationReport | None
    doubt: AgentError | None = None


class Run:
    """One run on two agents that are prepared."""

    def __init__(
        self,
        source: AgentClient,
        destination: AgentClient,
        pid: int,
        listener: Listener,
        faults: Faults | None = None,
    ) -> None:
        self._faults = faults or Faults(ORCHESTRATOR, ())
        self._source, self._destination = source, destination
        self._pid = pid
        self._listener = listener
        self._relaying = False
        self.resumed: float | None = None  # at the destination, before its memory, by the same
        self._got_on = 0.0  # when an agent last said so, by the loop's clock
        pairs = (("source", source, destination), ("destination", destination, source))
        for role, agent, other in pairs:
            agent.on_event("phase", functools.partial(self._phase, role, agent.host))
            agent.on_event("progress", self._progress)
            agent.on_event("relay", functools.partial(self._relay, agent, other))

    async def go(self, link: DestinationPrepared) -> Ending:
        """Tell both to run; returns when all is over, or nobody can say more."""
        source, destination = self._source, self._destination
        theirs = asyncio.create_task(
            self._side(destination.destination_run(), destination_report, source)
        )
        ours = asyncio.create_task(self._side(source.source_run(link), source_report, destination))
        await self._source_ends(ours, theirs)
        await self._faults.at("settle")
        sent: SourceReport | AgentError = (
            AgentSilent(host=source.host, seconds=f"{SOURCE_SIDE:.0f}")
            if ours.cancelled()
            else ours.result()
        )
        lost = isinstance(sent, AgentError)
        taken = await self._within(theirs, SETTLING if lost else OTHER_SIDE)
        if not isinstance(taken, AgentError) and taken["outcome"] == RUNNING:
            facts = None if isinstance(sent, AgentError) else sent
            return Ending(IN_DOUBT, facts, taken, self._missing())
        if isinstance(sent, AgentError):
            return self._without_source(sent, taken)
        if sent["relayed"]:
            self._listener.note("the hosts do not reach each other: data went through this machine")
        if sent["outcome"] == IN_DOUBT:
            return await self._settle(sent, taken)
        if isinstance(taken, AgentError):  # the source knows it over the link
            self._listener.note(f"no report: {taken.message}")
            return Ending(sent["outcome"], sent, None)
        if sent["outcome"] != taken["outcome"]:
            detail = f"{source.host} says {sent['outcome']}, {destination.host} {taken['outcome']}"
            return Ending(IN_DOUBT, sent, taken, self._unknown(detail))
        return Ending(sent["outcome"], sent, taken)

    async def _source_ends(
        self, ours: asyncio.Task[SourceReport | AgentError], theirs: asyncio.Task[Any]
    ) -> None:
        """Wait for the source's report; once the destination has ended, not for ever."""
        await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_COMPLETED)
        if not ours.done():
            await asyncio.wait({ours}, timeout=SOURCE_SIDE)
        if not ours.done():
            ours.cancel()
            await asyncio.gather(ours, return_exceptions=True)

    # --- events

    async def _phase(self, role: str, host: str, data: dict[str, Any]) -> None:
        name = data.get("name")
        if isinstance(name, str) and isinstance(data.get("ms", 0.0), int | float):
            self._listener.phase({**data, "role": role, "host": host})
            if data.get("state") == "begin":
                if name == POST_COPY:
                    self.resumed = asyncio.get_running_loop().time()
                await self._faults.at(name)

    def _progress(self, data: dict[str, Any]) -> None:
        done, total = data.get("done"), data.get("total")
        self._got_on = asyncio.get_running_loop().time()
        if isinstance(done, int) and isinstance(total, int):
            self._listener.progress(done, total)

    async def _relay(self, agent: AgentClient, other: AgentClient, data: dict[str, Any]) -> None:
        """Forward; what this waits for holds up the reading from `agent`."""
        self._relaying = True
        await relay(agent, other, data)

    # --- reports

    async def _side(
        self, call: Awaitable[Facts], check: Callable[[Facts], _R], other: AgentClient
    ) -> _R | AgentError:
        """One side's report, or why there is none; then a relayed link ends for the other, too."""
        try:
            return check(await call)
        except AgentError as error:
            if self._relaying:
                await other.send_event("relay", {"data": b""})
            return error

    async def _within(
        self, task: asyncio.Task[DestinationReport | AgentError], seconds: float
    ) -> DestinationReport | AgentError:
        """The destination's report, or why there is none; it may take long while it gets on."""
        now = asyncio.get_running_loop().time
        begin = now()
        while not task.done() and (left := max(begin, self._got_on) + seconds - now()) > 0:
            await asyncio.wait({task}, timeout=left)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return AgentSilent(host=self._destination.host, seconds=f"{seconds:.0f}")

    # --- endings that need more than two reports

    async def _settle(self, sent: SourceReport, taken: DestinationReport | AgentError) -> Ending:
        """The source is in doubt: bring it the destination's word."""
        if isinstance(taken, AgentError):
            return Ending(IN_DOUBT, sent, None, self._unknown(taken.message))
        self._listener.note("the link broke at the commit: settling with the destination")
        try:
            final = source_report(await self._source.source_resolve(taken["outcome"] == MIGRATED))
        except AgentError as error:
            return Ending(IN_DOUBT, sent, taken, self._left_at_source(error, taken))
        final["error"] = final["error"] or sent["error"]
        return Ending(final["outcome"], final, taken)

    def _without_source(self, error: AgentError, taken: DestinationReport | AgentError) -> Ending:
        """The source cannot say how it ended."""
        if isinstance(taken, AgentError):
            return Ending(IN_DOUBT, None, None, self._unknown(f"{error.message}; {taken.message}"))
        if taken["outcome"] == MIGRATED:
            host = self._source.host
            self._listener.note(f"{error.message}: look for a stopped copy at {host}")
            return Ending(MIGRATED, None, taken)
        return Ending(IN_DOUBT, None, taken, self._left_at_source(error, taken))

    def _left_at_source(self, error: AgentError, taken: DestinationReport) -> AgentError:
        """The destination has settled, the source perhaps not."""
        if error.exit_status == EXIT_IN_DOUBT:  # it has said itself what is left
            return error
        done = "has it" if taken["outcome"] == MIGRATED else "has undone its part"
        return self._unknown(f"{error.message}; {self._destination.host} {done}")

    def _missing(self) -> MemoryMissing:
        source, destination = self._source.host, self._destination.host
        return MemoryMissing(pid=self._pid, source=source, destination=destination)

    def _unknown(self, detail: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            detail=detail,
            pid=self._pid,
            source=self._source.host,
            destination=self._destination.host,
        )
