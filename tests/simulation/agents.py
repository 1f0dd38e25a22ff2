"""Simulated agents: they go by the tables of `agent.protocol`, one action a step.

Of their own they have only what a table leaves open: which event comes when a state's work is done,
how long they wait for a word, and what they say where no action says it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from agent.journal import JournalError
from agent.protocol import DESTINATION, SOURCE, TABLES, Found, Log, Machine, may_follow
from tests.simulation.guardians import Guardian
from tests.simulation.hosts import FROZEN, STREAMS, ActionFailed, Host, Journal, perform
from tests.simulation.world import KEEPALIVE, Life, Process, World

BLACKOUT = 10.0  # seconds, of the plan
PLAN = {"plan": {"max_blackout": BLACKOUT}}
STEP = 0.05  # seconds that an action takes, about
_PATIENCE = {
    SOURCE: {"ready": 20.0, "linked": 30.0, "handed-over": 10.0},
    DESTINATION: {"ready": 30.0, "linked": 30.0, "taking-over": 5.0},
}
_BLACKOUT = {  # one deadline from the lock to the hand-over
    SOURCE: ("locked", BLACKOUT, ("frozen", "shipped")),
    DESTINATION: ("locked", BLACKOUT + 2.0, ("restoring", "restored")),
}
_WORK_DONE = {
    SOURCE: {
        "locked": "freeze",
        "frozen": "shipped",
        "rolling-back": "undone",
        "committed": "ended",
    },
    DESTINATION: {
        "restoring": "restored",
        "taking-over": "commit",
        "running": "filled",
        "committed": "ended",
        "undoing": "undone",
    },
}
_AWAITING = {
    SOURCE: ("linked", "shipped", "handed-over"),
    DESTINATION: ("linked", "locked", "restored"),
}
_BACK = {"fail", "lost", "committed", "failed", "undone", "ended"}  # `Machine.back`
_UNDOING = {"rolling-back", "undoing"}  # a step that fails keeps no other from being taken
_PARTS = {  # actions with something between their beginning and their end
    "restore": (*("restore_stream",) * STREAMS, "restore"),
    "ship": ("ship", "say_end"),
    "release": ("release_stream", "release"),
}
_NEED_NOT_ARRIVE = {"say_undo", "say_failed", "say_running", "say_committed"}


class Covered(Machine):
    """The machine, counting."""

    def __init__(self, agent: Agent, record: Any) -> None:
        super().__init__(TABLES[agent.role], record)
        self._agent = agent

    def _move(self, event: str) -> Any:
        move = super()._move(event)
        world = self._agent.world
        world.cover["move", self.table.role, self.state, event] += 1
        if world.trace is not None:
            world.note(f"{self.table.role} agent: {self.state} --{event}--> {move.to}")
        return move


class Agent(Process):
    """One host's, for one migration."""

    __slots__ = (
        "role", "client", "orchestrator", "watched", "machine", "journal", "running", "stopped",
        "cancelled", "resolved", "guardian", "deadline", "gave", "took",
    )  # fmt: skip

    def __init__(self, world: World, host: Host, orchestrator: Any) -> None:
        self.role = host.role
        self.client = self.orchestrator = orchestrator  # `orchestrator`: None once it is gone
        self.watched = False  # by `leases`
        self.machine: Any = None
        self.running = self.cancelled = False
        self.resolved: str | None = None  # the destination's word, through the orchestrator
        self.guardian: Guardian | None = None
        self.deadline = 0.0
        self.gave = self.took = False  # the addresses
        world.agents[self.role] = self
        super().__init__(world, f"{self.role} agent", host)

    def life(self) -> Life:
        host, world = self.host, self.world
        assert host is not None
        try:
            self.journal = Journal(host, self)
        except OSError:
            self._report("error")
            return
        yield STEP
        self.machine = Covered(self, self.journal.record)
        try:
            told = {"other_host": self.world.source.id} if self.role == DESTINATION else {}
            self.machine.on("prepare", **PLAN, **told)
        except OSError:
            with contextlib.suppress(JournalError):
                self.journal.remove()
            self._report("error")
            return
        yield STEP
        self.guardian = Guardian(world, host, self)
        yield STEP
        self._report("prepared")
        while not self.running and self.orchestrator is not None:
            yield -60.0
        if self.running:
            world.link.open()
            yield from self._run()
        if self.machine.state == "in-doubt":
            self._report("in-doubt")
            yield from self._resolve()
        self._end()

    # --- by the table

    def _run(self) -> Life:
        """To an end, to doubt, or to where only whoever comes next can go on."""
        machine = self.machine
        self._entered()
        event: str | None = "fail"
        if self.role == DESTINATION or self._note(other_host=self.world.destination.id):
            event = yield from self._linked()
        while event is not None:
            actions = self._move(event)
            if actions is None:
                yield STEP
                event = "fail" if (machine.state, "fail") in machine.table.moves else None
                continue
            self._entered()
            yield STEP
            event = yield from self._work(actions)
            if event is None and machine.state in _AWAITING[self.role]:
                event = yield from self._word()
            elif event == "filled":
                event = yield from self._pages()

    def _linked(self) -> Any:
        link = self.world.link
        while not link.opened:
            if (event := self._interruption()) is not None:
                return event
            yield -1.0
        return "connect"

    def _move(self, event: str) -> tuple[str, ...] | None:
        """What is to be done; None where the journal could not be written."""
        if event in _BACK:
            return self.machine.back(event)
        try:
            return self.machine.on(event)
        except OSError:
            return None

    def _note(self, **facts: object) -> bool:
        """Whether it is in the journal."""
        try:
            self.journal.record("", Log.NOTE, facts)
        except OSError:
            return False
        return True

    def _entered(self) -> None:
        state, now = self.machine.state, self.world.now
        first, seconds, rest = _BLACKOUT[self.role]
        if state == first:
            self.deadline = now + seconds
        elif state not in rest:
            self.deadline = now + _PATIENCE[self.role].get(state, 60.0)

    def _work(self, actions: tuple[str, ...]) -> Any:
        """Do all of it; returns the event that this leads to, None where there is none."""
        machine = self.machine
        state = machine.state
        failed: list[str] = []
        if state == "linked" and self.role == SOURCE:
            actions = ("say_lock",)
        for action in actions:
            if not may_follow(action, failed):
                continue
            for part in _PARTS.get(action, (action,)):
                if not self._do(part):
                    failed.append(part)
                yield STEP
                if failed and state not in _UNDOING:
                    if (state, "fail") in machine.table.moves:
                        return "fail"
                    return machine.table.silence.get(state)
                if (event := self._interruption()) is not None:
                    return event
        if failed:
            return None
        if state in ("running", "committed") and self.role == DESTINATION:
            self._note(resumed=True)
            yield 1.0  # the peers wake up
        event = _WORK_DONE[self.role].get(state)
        return "run" if event == "commit" and self.world.post_copy else event

    def _do(self, action: str) -> bool:
        """Whether it was done."""
        try:
            if action.startswith("say_"):
                other = DESTINATION if self.role == SOURCE else SOURCE
                self.world.link.send(other, action[4:])
                return True
            assert self.host is not None
            if action == "give_addresses":
                self.gave = True
            elif action == "take_addresses":
                self.took = True
            elif action == "take_back_addresses" and not self.gave:
                return True
            elif action == "drop_addresses" and not self.took:
                return True
            perform(self.host, action)
        except ActionFailed:
            return action in _NEED_NOT_ARRIVE
        return True

    # --- what comes from outside

    def _interruption(self) -> str | None:
        """The event `fail`, where the state allows it and something calls for it."""
        table, state, link = self.machine.table, self.machine.state, self.world.link
        if (state, "fail") not in table.moves:
            return None
        if self.cancelled or self.world.now >= self.deadline:
            return "fail"
        if self.orchestrator is None and not link.opened:
            return "fail"
        for word in self.inbox:
            if table.hears.get((state, word)) == "fail":
                return "fail"
        if link.cut and "handover" not in self.inbox:
            return table.silence.get(state)
        return None

    def _pages(self) -> Any:
        """Wait for the memory that the source still has; the event that it leads to, if it does."""
        while "pages" not in self.inbox:
            if self.world.link.cut or self.world.now >= self.deadline:
                return None
            yield min(-0.001, self.world.now - self.deadline)
        assert self.host is not None
        self.host.missing = False
        return "filled"

    def _serve(self) -> None:
        """The process runs at the destination: send it what it does not have yet."""
        assert self.host is not None
        self.inbox.remove("running")
        self.deadline = self.world.now + 60.0
        if self.host.copy == FROZEN and self._note(serving=True):
            with contextlib.suppress(ActionFailed):
                self.world.link.send(DESTINATION, "pages")

    def _word(self) -> Any:
        """The event that the other host's next word means here, or its silence."""
        table, state, inbox = self.machine.table, self.machine.state, self.inbox
        while True:
            if state == "handed-over" and "running" in inbox:
                self._serve()
            for at, word in enumerate(inbox):
                if (event := table.heard(state, word)) is not None:
                    del inbox[at]
                    self.world.cover["word", self.role, state, word] += 1
                    return event
            if (event := self._interruption()) is not None:
                return event
            if self.world.link.cut or self.world.now >= self.deadline:
                self.world.cover["silence", self.role, state] += 1
                return table.silence[state]
            yield min(-0.001, self.world.now - self.deadline)

    def _resolve(self) -> Life:
        """In doubt: until the orchestrator brings the word, or is gone."""
        while self.resolved is None:
            if self.orchestrator is None:
                return
            yield -60.0
        event = self.machine.table.heard("in-doubt", self.resolved)
        assert event is not None
        self.world.reached("resolve")
        event = yield from self._work(self.machine.back(event))
        if event is not None:
            self._move(event)

    # --- the end

    def _end(self) -> None:
        """As `agent.custody.Custody.end`."""
        machine, table = self.machine, self.machine.table
        if machine.state == "ready":
            machine.back("fail")
            machine.back("undone")
        says = machine.state
        try:
            if table.states[machine.state].found is Found.OVER:
                if self.role == SOURCE or machine.state != "migrated":
                    self.journal.remove()
                if self.guardian is not None:
                    self.guardian.dismissed = True
        except JournalError:  # the guardian is left to try again
            says = "error"
        self.journal.close()
        self._report(says)

    def _report(self, what: str) -> None:
        if self.orchestrator is not None:
            self.orchestrator.hear(self.role, what)

    def buried(self, silently: bool) -> None:
        world = self.world
        if not silently and self.guardian is not None:
            self.guardian.wake()
        world.link.breaks(KEEPALIVE if silently else 0.05)
        self.client.hear(self.role, "gone", KEEPALIVE if silently else 0.05)

    def abandoned(self) -> None:
        """The orchestrator is gone, or somebody asks this agent to go."""
        self.orchestrator = None
        self.wake()
