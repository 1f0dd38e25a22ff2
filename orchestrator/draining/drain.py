"""The drain itself: begins what may begin, carries each through its states, keeps the journal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from agent.errors import AgentError, internal
from agent.plan import Plan
from orchestrator.draining import outcome, states
from orchestrator.draining.agents import Agents
from orchestrator.draining.journal import DrainUnwritten, Item, Journal
from orchestrator.draining.logged import Listener, Logged
from orchestrator.draining.mover import Move, Mover, Moving
from orchestrator.draining.scheduler import Scheduler, Task
from orchestrator.draining.survey import options_of
from orchestrator.draining.wellness import await_well
from orchestrator.draining.window import Window
from orchestrator.errors import told
from orchestrator.migration.driver import Request
from orchestrator.migration.result import IN_DOUBT, MIGRATED, Json, stall_ms
from orchestrator.playbook.model import GO_ON, MOVE_BACK, STOP, Limits, Select, Workload
from orchestrator.records import Records

_ENDED = "no-such-process"
# Of a workload that no playbook names: the drain's defaults hold for it.
_FOUND = Workload(name="found", select=Select(pid_file="/found"))


class NotBegun(AgentError):
    code = "not-begun"
    template = "it was not begun: {detail}"
    hint_template = "`migrate drain --resume {id}` goes on once that is no longer so."


Make = Callable[..., Moving]


class Drain:
    """A drain whose workloads are placed; `run` moves them. `interrupt` may be called any time."""

    def __init__(
        self,
        journal: Journal,
        agents: Agents,
        records: Records,
        listener: Listener,
        make: Make = Mover,
        window: Window | None = None,
        ended: Callable[[Json], None] = lambda _result: None,
    ) -> None:
        """`make`: what moves one workload; tests have another. `ended` is told each result."""
        self._journal, self._agents, self._records = journal, agents, records
        self._ended = ended
        self._listener, self._make = Logged(listener), make
        self._window = window or Window()
        self.items = journal.items
        self._drain, self._defaults = journal.begun.drain, journal.begun.defaults
        self._workloads = {one.name: one for one in self._drain.workloads or []}
        self._moving: dict[str, Moving] = {}  # on the way there; the way back is not given up
        self._wakes = asyncio.Event()  # the time is up for those who wait for health
        self.interrupted = False
        self.trouble: AgentError | None = None  # of the drain as a whole
        self._scheduler = self._schedule()

    def _schedule(self) -> Scheduler:
        keys: dict[str, list[str]] = {}
        for key, item in self.items.items():
            keys.setdefault(item.name, []).append(key)
        tasks = [self._task(item, keys) for item in self.items.values()]
        hosts = self._journal.begun.hosts
        return Scheduler(
            tasks,
            self._drain.max_parallel,
            {one.group: one.at_most for one in self._drain.budgets},
            {
                name: host.policies.max_incoming
                for name, host in hosts.items()
                if host.policies.max_incoming is not None
            },
            {key: item.state for key, item in self.items.items()},
        )

    def _task(self, item: Item, keys: dict[str, list[str]]) -> Task:
        workload = self.workload(item)
        after = frozenset(key for name in workload.after for key in keys.get(name, []))
        return Task(item.key, item.destination, workload.group, after)

    def workload(self, item: Item) -> Workload:
        """What the playbook says of it."""
        return self._workloads.get(item.name, _FOUND)

    def interrupt(self) -> None:
        """Begin nothing more, and undo what is on the move while that is possible."""
        self.interrupted = True
        self._scheduler.stop()
        self._wakes.set()
        for one in self._moving.values():
            one.interrupt()

    async def run(self) -> None:
        """Move all that may be moved; returns when nothing runs any more."""
        under_way = {
            asyncio.create_task(self._carry(item, self._check(item)))
            for item in self.items.values()
            if item.state == states.CHECKING  # a resumed drain begins with those
        }
        while True:
            while not self.interrupted and (task := self._next()):
                item = self.items[task.key]
                self._window.begin(task.key)
                under_way.add(asyncio.create_task(self._carry(item, self._move(item))))
            if not under_way:
                break
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in self._scheduler.waiting:
            why = self._scheduler.why_not(task)
            error = NotBegun(detail=why, id=self._journal.begun.id)
            self.items[task.key].error = self.items[task.key].error or told(error)

    def _next(self) -> Task | None:
        if why := self._window.why_not():
            self._scheduler.stop(why)
        return self._scheduler.begin()

    async def _carry(self, item: Item, work: object) -> None:
        """Nothing that goes wrong with one is the end of another."""
        try:
            await work  # type: ignore[misc]
        except DrainUnwritten as error:  # what would be done next could not be gone on with
            self.trouble = self.trouble or error
            self._scheduler.stop()
        except Exception as error:
            item.error = told(internal(error))
            self.trouble = self.trouble or internal(error)
            self._scheduler.stop()
        finally:
            self._window.ended(item.key)

    def _enter(self, item: Item, state: str) -> None:
        """Come into a state, and have it on disk. Raises `DrainUnwritten`."""
        if self._scheduler.states[item.key] != state:
            self._scheduler.enter(item.key, state)
        item.state = state
        if state in (states.MOVING, states.RETURNING):
            item.migration = ""  # of the one before; the new one is noted with its plan
        item.times[state] = round(time.time(), 3)
        self._listener.changed(item)
        self._journal.note(item)

    # --- there

    async def _move(self, item: Item) -> None:
        item.error = None
        try:
            self._enter(item, states.MOVING)
            move = await self._go(item, self._drain.node, item.destination, False)
        except DrainUnwritten:
            item.state = self._scheduler.states[item.key] = states.WAITING  # nothing was touched
            raise
        error = move.result["error"]
        came = move.result["outcome"]
        lost = error is not None and error["code"] == "copy-lost"
        if came == MIGRATED and not lost:
            item.moved = True
            item.blackout_ms = move.result["blackout_ms"]
            item.stall_ms = stall_ms(move.result)
            self._enter(item, states.CHECKING)
            await self._check(item)
            return
        item.error = told(move.error) if move.error else _told(error)
        if came == IN_DOUBT:
            state = states.IN_DOUBT
        elif lost:
            state = states.LOST
        elif error and error["code"] == _ENDED:
            state = states.GONE
        elif self.interrupted and move.error is None:
            state = states.WAITING
        else:
            state = states.FAILED
        self._enter(item, state)
        if state not in (states.WAITING, states.GONE):
            self._failed()

    async def _go(self, item: Item, source: str, destination: str, returns: bool) -> Move:
        workload = self.workload(item)
        migrate = workload.migrate or self._defaults.migrate
        limits = Limits() if returns else workload.limits or self._defaults.limits
        options = options_of(migrate, returns)
        config = self._journal.begun.ssh_config
        request = Request(source, destination, item.pid, config, options)

        def begun(plan: Plan) -> None:
            item.migration = plan.id
            if plan.addresses:
                item.address = plan.addresses[0].address
            self._journal.note(item)

        def said(phase: str, done: int, total: int) -> None:
            self._listener.progress(item, phase, done, total)

        def note(text: str) -> None:
            self._listener.heard(f"{item.key}: {text}")

        moving = self._make(request, self._records, limits, begun, said, note)
        if not returns:
            self._moving[item.key] = moving
            if self.interrupted:
                moving.interrupt()
        try:
            move = await moving.go()
        finally:
            self._moving.pop(item.key, None)
        self._ended(move.result)
        return move

    # --- is it well, and what follows

    async def _check(self, item: Item) -> None:
        health = self.workload(item).health
        if health is not None:
            unwell = await self._unless_interrupted(
                await_well(self._agents, item.destination, health, item.address)
            )
            if self.interrupted and unwell is not None:
                return  # `--resume` asks again
            if unwell is not None:
                item.error = told(unwell)
                await self._unwell(item)
                return
        item.error = None
        self._enter(item, states.MOVED)

    async def _unless_interrupted(self, question: object) -> AgentError | None:
        asking = asyncio.ensure_future(question)  # type: ignore[call-overload]
        waking = asyncio.ensure_future(self._wakes.wait())
        await asyncio.wait({asking, waking}, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()
        if not asking.done():
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            return AgentError(detail="interrupted")
        found: AgentError | None = asking.result()
        return found

    async def _unwell(self, item: Item) -> None:
        then = self.workload(item).on_unhealthy or self._defaults.on_unhealthy
        if then == MOVE_BACK:
            await self._return(item)
        else:
            self._enter(item, states.UNWELL)
            if then == STOP:
                self._scheduler.stop()
        if then != GO_ON:
            self._failed()

    async def _return(self, item: Item) -> None:
        self._enter(item, states.RETURNING)
        move = await self._go(item, item.destination, self._drain.node, True)
        came, error = move.result["outcome"], move.result["error"]
        if came == IN_DOUBT:
            item.error = _told(error)
            self._enter(item, states.IN_DOUBT)
        elif error and error["code"] == "copy-lost":
            item.error = _told(error)
            self._enter(item, states.LOST)
        elif came != MIGRATED:
            self._listener.note(f"{item.key} could not be moved back: {error['message']}")
            self._enter(item, states.UNWELL)
        else:
            await self.returned(item)

    async def returned(self, item: Item) -> None:
        """It is on its node again: is it well there?"""
        item.moved = False
        item.error = outcome.moved_back(item.error, self._drain.node)
        health = self.workload(item).health
        unwell = None
        if health is not None:
            unwell = await await_well(self._agents, self._drain.node, health, item.address)
        self._enter(item, states.UNWELL if unwell is not None else states.RETURNED)

    def _failed(self) -> None:
        if self._drain.on_failure == STOP:
            self._scheduler.stop()


def _told(error: Json | None) -> dict[str, str] | None:
    return {key: error[key] for key in ("code", "message", "hint")} if error else None
