"""One migration from the outside: reach both hosts, check, have both agents run, report.

`orchestrator.migration.run` has the run itself; until then nothing was touched on either host.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.errors import AgentError, Cancelled, internal
from agent.fault import ORCHESTRATOR, Faults
from agent.plan import Plan, new_id
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate
from orchestrator.agent_client import AgentClient, Facts
from orchestrator.errors import AgentLost, OutcomeUnknown
from orchestrator.inventory import config_files, parse_target
from orchestrator.memory import Choice, choose, told
from orchestrator.migration import result as results
from orchestrator.migration.account import Accountant, Reporter
from orchestrator.migration.result import Json
from orchestrator.migration.run import Run
from orchestrator.plan import Options, check_hosts, plan
from orchestrator.records import RecordDamaged, Records
from orchestrator.recovery import Named
from orchestrator.refusals import Refusal, refusal
from orchestrator.sync import Seen, to_look_at
from orchestrator.transport import open_agent

if TYPE_CHECKING:
    from orchestrator.recovering import Recoverer, Report


_NAMED = 3  # paths in a warning


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    source: str
    destination: str
    pid: int
    ssh_config: str | None = None
    options: Options = field(default_factory=Options)


class Driver:
    """Drives one request. `interrupt` may be called at any time."""

    def __init__(
        self, request: Request, reporter: Reporter, records: Records | None = None
    ) -> None:
        """`records`: where it is written down that a migration was begun, and its result."""
        self._records = records
        self._request = request
        self._reporter = Accountant(reporter)
        self._result = results.empty(new_id(), request.source, request.destination, request.pid)
        self._agents: list[AgentClient] = []
        self._run: Run | None = None
        self._pair: tuple[AgentClient, AgentClient]
        self._named: Named
        self._begun = False  # the agents were told to run
        self._running: AgentClient | None = None  # the source, while it can be cancelled
        self._task: asyncio.Task[Any] | None = None
        self._cancelling: asyncio.Task[None] | None = None
        self._interrupted = False
        self._recoverer: Recoverer | None = None  # while it is at work
        self._doing = "undoing"  # once it is interrupted
        self._faults = Faults(ORCHESTRATOR, request.options.faults)
        self._faults.cut, self._faults.spoil = self._cut, self._spoil
        if records is not None:
            self._faults.fill = records.fill
        self._unended = False  # something is left to do at a host
        self.refusals: list[Refusal] = []
        self.timeline: list[results.Span] = []
        self.plan: Plan | None = None
        self._memory: Choice
        self.process: Facts = {}  # what the source's agent found
        self.error: AgentError | None = None

    def _cut(self) -> None:
        for agent in self._agents:
            agent.abort()

    def _spoil(self, _action: str) -> None:
        for agent in self._agents:
            agent.spoil()

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
        if self._begun:
            await self._recover_if_needed()
            self._write_down_end()
        self._reporter.ended(self._result)
        return self._result

    def interrupt(self) -> None:
        """Ctrl-C: undo while that is possible, else finish; but wait for no host that is gone."""
        if self._recoverer is not None:
            self._recoverer.give_up()
        if self._interrupted:
            self._reporter.note(f"still {self._doing}: it is never left half done")
            return
        self._interrupted = True
        if self._running is not None:
            self._cancelling = asyncio.create_task(self._cancel(self._running))
        elif self._begun:  # the run is over, and what came of it holds
            self._finishing("it has come to its end: finishing")
        elif self._task is not None:
            self._task.cancel()

    async def _cancel(self, source: AgentClient) -> None:
        with contextlib.suppress(AgentError):
            if await source.source_cancel():
                self._reporter.note("undoing")
            else:
                self._finishing("the destination has it already: finishing")

    def _finishing(self, text: str) -> None:
        self._doing = "finishing"
        self._reporter.note(text)

    async def _guarded(self, work: Any) -> None:
        """Run the work; errors and interruptions become the result, the agents are let go."""
        self._reporter.identify(self._result["id"], self._request)
        self._reporter.started(self._request)
        self._task = asyncio.create_task(work)
        try:
            await asyncio.wait({self._task})
            self._task.result()
        except asyncio.CancelledError:
            self._failed(Cancelled(phase="check"))
        except AgentError as error:
            if self._begun:
                self._fault(error)
            else:
                self._failed(error)
        except Exception as error:  # a fault of ours; the agents settle what they have begun
            self._fault(internal(error))
        finally:
            self._task = None
            await asyncio.gather(*(one.close() for one in self._agents), return_exceptions=True)

    def _failed(self, error: AgentError) -> None:
        """All ended before the run."""
        self.error = error
        self._result["outcome"] = results.outcome_of(error, checked=self.plan is not None)
        self._result["error"] = results.described(error, "check")

    def _fault(self, error: AgentError) -> None:
        if not self._begun:
            self._failed(error)
            return
        names = {"source": self._request.source, "destination": self._request.destination}
        self._doubt(OutcomeUnknown(detail=error.message, pid=self._request.pid, **names))

    def _doubt(self, error: AgentError) -> None:
        self.error = error
        self._result["outcome"] = results.IN_DOUBT
        self._result["error"] = results.described(error, "commit")

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
        seen = await self._look_at_files(process, facts)
        made = plan(*names, here, there, process, facts, options, seen)
        if isinstance(made, list):
            self._refuse(made)
            return
        for lacking in facts["missing_options"]:
            said = refusal("option-missing", destination=request.destination, **lacking)
            self._reporter.note(f"warning: {said.message}")
        self.plan = made
        self._result["id"] = made.id
        found = validate(there, HostFacts, f"the facts of {request.destination}")
        memory = choose(options.memory_mode, made.memory, request.destination, found)
        self._memory = memory
        self._result["memory"] = told(memory, memory.mode, [], made.max_blackout)
        self._reporter.checked((time.monotonic() - begin) * 1000, made, process, memory)

    async def _look_at_files(self, process: Facts, found: Facts) -> Seen | None:
        """What both hosts have of what may be brought along; nothing where nothing is to be."""
        wish = self._request.options.sync
        if not wish.any:
            return None
        paths = to_look_at(
            wish,
            validate(process, ProcessFacts, "the facts of the process"),
            validate(found, DestinationFacts, "the facts of the destination"),
        )
        return Seen(*await _both(*(one.look_at_paths(paths) for one in self._pair)))

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
        self._reporter.note(f"{target}: {line}", str(target))

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
        await self._faults.at("prepare")
        self._run = run = Run(source, destination, self._request.pid, self._reporter, self._faults)
        wire = self.plan.to_wire()
        key = await source.source_prepare(wire)
        request = self._request
        link = await destination.destination_prepare(wire, key, request.options.returns)
        self._named = Named(
            self.plan.id, request.source, request.destination, request.pid,
            key["host_id"], link["host_id"],
        )  # fmt: skip
        self._write_down("begin", self._named, request.ssh_config)
        self._begun, self._running = True, source
        try:
            await self._faults.at("run")
            ending = await run.go(link)
        finally:
            self._running = None
            if self._cancelling is not None:
                await self._cancelling
        self._result["outcome"] = ending.outcome
        if ending.doubt is not None:
            self._doubt(ending.doubt)
        sent, taken = ending.source, ending.destination
        migrated = ending.outcome == results.MIGRATED
        # What an agent could not finish after the commit is left to its guardian.
        troubled = migrated and taken is not None and taken["error"] is not None
        self._unended = sent is None or taken is None or troubled
        results.merge(self._result, sent, taken)
        if sent is not None:
            mode, rounds = sent["memory_mode"], sent["rounds"]
            memory = told(self._memory, mode, rounds, self.plan.max_blackout)
            if memory != self._result["memory"]:
                self._reporter.note(f"memory: {memory['mode']}, {memory['why']}")
            self._result["memory"] = memory
            if left := sent["sync_left"]:
                more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
                named = ", ".join(left[:_NAMED])
                self._reporter.note(f"warning: not brought, a socket or device: {named}{more}")
        self.timeline = results.timeline(sent, taken)
        if migrated and not self._unended and self._write_down_end():
            with contextlib.suppress(AgentError):  # nobody will ask any more
                await destination.forget(self._result["id"])

    async def _recover_if_needed(self) -> None:
        """Where an agent was lost, its guardian or a new agent ends what it had begun."""
        if self._result["outcome"] != results.IN_DOUBT and not self._unended:
            return
        from orchestrator.recovering import Recoverer

        request = self._request
        self._reporter.note("an agent did not come to its end: ending what it had begun")
        self._recoverer = Recoverer(request.ssh_config, note=self._reporter.note)
        try:
            await self._recoverer.end(self._named, self._recovered)
        finally:
            await self._recoverer.close()
            self._recoverer = None

    def _recovered(self, report: Report) -> bool:
        """Take over what recovery has found; whether the hosts may forget it."""
        if report.ended.waits:  # it goes on, or is tried again
            return False
        known = self._result["outcome"] in (results.MIGRATED, results.ROLLED_BACK)
        if known and report.ended.outcome == results.IN_DOUBT:  # one who knew has let go of it
            self._reporter.note(report.unheard)
            return self._write_down_end()
        self._reporter.note(report.sentence)
        if report.half_ended is not None:
            self._doubt(report.half_ended)
        elif report.loss is not None:
            self.error = report.loss
            self._result["outcome"] = report.ended.outcome
            self._result["error"] = results.described(report.loss, "commit")
        elif report.ended.outcome == results.MIGRATED:
            self._result["outcome"], self._result["error"] = results.MIGRATED, None
            self.error = None
            if self._run is not None and (resumed := self._run.resumed) is not None:
                seconds = asyncio.get_running_loop().time() - resumed
                results.filled(self._result, self.timeline, seconds)
        elif report.ended.outcome in (results.ROLLED_BACK, results.OVER) and self.error is not None:
            self._result["outcome"] = results.ROLLED_BACK
            detail = str(self.error.fields.get("detail", self.error.message))
            self.error = AgentLost(
                detail=detail, pid=self._request.pid, source=self._request.source
            )
            self._result["error"] = results.described(self.error, "commit")
        return self._write_down_end()

    def _write_down_end(self) -> bool:
        account = self._reporter.account(self.timeline)
        return self._write_down("end", self._result["id"], self._result, account)

    def _write_down(self, verb: str, *arguments: Any) -> bool:
        """Whether that is on disk here (or nobody wants it so)."""
        if self._records is not None:
            try:
                getattr(self._records, verb)(*arguments)
            except (OSError, RecordDamaged) as error:
                self._reporter.note(f"`migrate list` will not know of it: {error}")
                return False
        return True


async def _both(*works: Any) -> list[Any]:
    """Await all; the first error is raised when all have ended."""
    done = await asyncio.gather(*works, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done
