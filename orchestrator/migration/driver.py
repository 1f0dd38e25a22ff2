"""One migration from the outside: reach both hosts, check, tell both agents to run, report.

The agents do the blackout between themselves; this side only relays where they cannot reach each
other, passes on a cancellation, and settles a doubt with what the destination reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from agent.errors import AgentError, Cancelled
from agent.plan import Plan, new_id
from orchestrator.agent_client import AgentClient, Facts
from orchestrator.errors import OutcomeUnknown
from orchestrator.inventory import config_files, parse_target
from orchestrator.migration import result as results
from orchestrator.migration.result import Json
from orchestrator.plan import Options, check_hosts, plan
from orchestrator.refusals import Refusal, refusal
from orchestrator.transport import open_agent

_OTHER_SIDE = 15.0  # seconds for the second report, once the first has come
_SETTLING = 20.0  # seconds for a destination that nobody talks to any more to settle by itself


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    source: str
    destination: str
    pid: int
    ssh_config: str | None = None
    options: Options = field(default_factory=Options)


class Reporter(Protocol):
    """Is told of everything as it happens."""

    def started(self, request: Request) -> None: ...
    def checked(self, ms: float, plan: Plan, process: Facts) -> None: ...
    def phase(self, event: dict[str, Any]) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


class Driver:
    """Drives one request. `interrupt` may be called at any time."""

    def __init__(self, request: Request, reporter: Reporter) -> None:
        self._request = request
        self._reporter = reporter
        self._result = results.empty(new_id(), request.source, request.destination, request.pid)
        self._agents: list[AgentClient] = []
        self._pair: tuple[AgentClient, AgentClient]
        self._running: AgentClient | None = None  # the source, while it can be cancelled
        self._task: asyncio.Task[Any] | None = None
        self._cancelling: asyncio.Task[None] | None = None
        self._interrupted = False
        self.refusals: list[Refusal] = []
        self.plan: Plan | None = None
        self.process: Facts = {}  # what the source's agent found
        self.error: AgentError | None = None

    # --- the two verbs

    async def check(self) -> Json:
        """Only check; the result has outcome "ready" or "refused"."""
        await self._guarded(self._check())
        if self.plan is not None and not self._result["error"]:
            self._result["outcome"] = "ready"
        return self._result

    async def migrate(self) -> Json:
        """Migrate; the result as `orchestrator.migration.result` describes it."""
        await self._guarded(self._migrate())
        return self._result

    def interrupt(self) -> None:
        """Ctrl-C: undo while that is possible, else finish."""
        if self._interrupted:
            self._reporter.note("still undoing: it is never left half done")
            return
        self._interrupted = True
        if self._running is not None:
            self._cancelling = asyncio.create_task(self._cancel(self._running))
        elif self._task is not None:
            self._task.cancel()

    async def _cancel(self, source: AgentClient) -> None:
        with contextlib.suppress(AgentError):
            if await source.source_cancel():
                self._reporter.note("undoing")
            else:
                self._reporter.note("the destination has it already: finishing")

    async def _guarded(self, work: Any) -> None:
        """Run the work; errors and interruptions become the result, the agents are let go."""
        self._reporter.started(self._request)
        self._task = asyncio.create_task(work)
        try:
            await asyncio.wait({self._task})
            self._task.result()
        except asyncio.CancelledError:
            self._failed(Cancelled(phase="check"))
        except AgentError as error:
            self._failed(error)
        finally:
            self._task = None
            await asyncio.gather(*(one.close() for one in self._agents), return_exceptions=True)

    def _failed(self, error: AgentError) -> None:
        self.error = error
        self._result["outcome"] = results.outcome_of(error)
        self._result["error"] = results.described(error, "check")

    # --- before anything is touched

    async def _check(self) -> None:
        begin = time.monotonic()
        try:
            await self._probe(begin)
        finally:
            self._result["phases_ms"]["check"] = (time.monotonic() - begin) * 1000

    async def _probe(self, begin: float) -> None:
        request = self._request
        if request.source == request.destination:
            self._refuse(
                [refusal("same-machine", source=request.source, destination=request.destination)]
            )
            return
        self._pair = source, destination = await self._open()
        directory = request.options.images_dir
        here, there = await _both(source.probe_host(directory), destination.probe_host(directory))
        names = request.source, request.destination
        if refusals := check_hosts(*names, here, there):
            self._refuse(refusals)
            return
        self.process = process = await source.probe_process(request.pid)
        facts = await destination.probe_destination(process, directory)
        options = replace(request.options, link_hosts=tuple(destination.addresses))
        made = plan(*names, here, there, process, facts, options)
        if isinstance(made, list):
            self._refuse(made)
            return
        self.plan = made
        self._result["id"] = made.id
        self._reporter.checked((time.monotonic() - begin) * 1000, made, process)

    async def _open(self) -> tuple[AgentClient, AgentClient]:
        config = config_files(self._request.ssh_config)
        targets = [parse_target(text) for text in (self._request.source, self._request.destination)]

        async def open_one(target: Any) -> AgentClient:
            channel = await open_agent(target, config, lambda line: self._said(target, line))
            client = AgentClient(channel)
            self._agents.append(client)
            await client.start()
            return client

        source, destination = await _both(*map(open_one, targets))
        return source, destination

    def _said(self, target: Any, line: str) -> None:
        self._reporter.note(f"{target}: {line}")

    def _refuse(self, refusals: list[Refusal]) -> None:
        self.refusals = refusals
        self._result["outcome"] = results.REFUSED
        self._result["error"] = results.refused(refusals)

    # --- the run

    async def _migrate(self) -> None:
        await self._check()
        if self.plan is None:
            return
        source, destination = self._pair
        self._listen(source, destination)
        wire = self.plan.to_wire()
        key = await source.source_prepare(wire)
        link = await destination.destination_prepare(wire, key["public_key"])
        self._running = source
        try:
            await self._run(source, destination, link)
        finally:
            self._running = None
            if self._cancelling is not None:
                await self._cancelling

    def _listen(self, source: AgentClient, destination: AgentClient) -> None:
        for agent, other in ((source, destination), (destination, source)):
            agent.on_event("phase", self._reporter.phase)
            agent.on_event("progress", self._progress)
            agent.on_event("relay", functools.partial(other.send_event, "relay"))

    def _progress(self, data: dict[str, Any]) -> None:
        done, total = data.get("done"), data.get("total")
        if isinstance(done, int) and isinstance(total, int):
            self._reporter.progress(done, total)

    async def _run(self, source: AgentClient, destination: AgentClient, link: Facts) -> None:
        result = self._result
        theirs = asyncio.create_task(destination.destination_run())
        ours = asyncio.create_task(source.source_run(link))
        await asyncio.wait({ours})
        sent = _report(ours)
        if isinstance(sent, AgentError):
            taken = await _within(theirs, _SETTLING)
            self._source_lost(sent, taken)
            results.merge(result, None, taken if isinstance(taken, dict) else None)
            return
        taken = await _within(theirs, _OTHER_SIDE)
        if sent["outcome"] == results.IN_DOUBT and isinstance(taken, dict):
            committed = taken["outcome"] == results.MIGRATED
            self._reporter.note("the link broke at the commit: settling with the destination")
            with contextlib.suppress(AgentError):
                sent = await source.source_resolve(committed) | {"error": sent["error"]}
        result["outcome"] = sent["outcome"]
        if sent["relayed"]:
            self._reporter.note("the hosts do not reach each other: data went through this machine")
        if sent["outcome"] == results.IN_DOUBT:
            self._doubt(taken)
        results.merge(result, sent, taken if isinstance(taken, dict) else None)

    def _source_lost(self, error: AgentError, taken: Facts | AgentError) -> None:
        if isinstance(taken, dict) and taken["outcome"] == results.MIGRATED:
            self._result["outcome"] = results.MIGRATED
            self._reporter.note(f"{error.message}; look for a stopped copy there")
        else:
            self._doubt(error)

    def _doubt(self, reason: Facts | AgentError) -> None:
        detail = reason.message if isinstance(reason, AgentError) else "the source did not answer"
        self.error = OutcomeUnknown(
            detail=detail,
            pid=self._request.pid,
            source=self._request.source,
            destination=self._request.destination,
        )
        self._result["outcome"] = results.IN_DOUBT
        self._result["error"] = results.described(self.error, "commit")


async def _both(*works: Any) -> list[Any]:
    """Await all; the first error is raised when all have ended."""
    done = await asyncio.gather(*works, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done


def _report(task: asyncio.Task[Facts]) -> Facts | AgentError:
    try:
        return task.result()
    except AgentError as error:
        return error


async def _within(task: asyncio.Task[Facts], seconds: float) -> Facts | AgentError:
    """The report of the other side, or why there is none."""
    await asyncio.wait({task}, timeout=seconds)
    if task.done():
        return _report(task)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return AgentError(detail=f"no report within {seconds:.0f} s")
