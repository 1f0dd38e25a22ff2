"""Simulated orchestrators: one that migrates, and `migrate recover`, which may run at any time.

They decide nothing. Recovery is `orchestrator.recovery.carry`, driven a question at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from agent.errors import AgentError
from agent.protocol import DESTINATION, SOURCE, TABLES
from agent.recovery import Settled
from orchestrator.errors import AgentSilent, HostUnreachable
from orchestrator.migration.result import IN_DOUBT, MIGRATED, ROLLED_BACK
from orchestrator.recovery import Named, Recovered
from tests.simulation.agents import Agent
from tests.simulation.guardians import Filler, Forgetter, Server, Settler
from tests.simulation.hosts import ID
from tests.simulation.world import KEEPALIVE, Life, Process, World

_REACH = 0.3  # seconds to reach a host
_PREPARE = 0.8  # seconds from one agent that is prepared to the next
_ANSWER = 120.0  # seconds for a host's answer
_OTHER_SIDE, _SOURCE_SIDE = 15.0, 90.0
_FILLS = 3


class _Question:
    """Awaited by `carry`; whoever drives it sends the answer."""

    __slots__ = ("role", "forget", "word")

    def __init__(self, role: str, word: str | None, forget: bool = False) -> None:
        self.role, self.word, self.forget = role, word, forget

    def __await__(self) -> Generator[_Question, Any, Any]:
        return (yield self)


async def _forget(role: str) -> None:
    answer = await _Question(role, None, forget=True)
    if isinstance(answer, AgentError):
        raise answer


class Recovery(Process):
    """`migrate recover`, of one migration."""

    __slots__ = ("named", "result", "_asked")

    def __init__(self, world: World, name: str, named: str = "") -> None:
        """`named`: the role of the host that is named; "" where the migration is."""
        self.named = named
        self.result: Recovered | AgentError | None = None
        self._asked = 0
        super().__init__(world, name)

    def life(self) -> Life:
        world = self.world
        if self.named:
            yield _REACH
            host = world.hosts[self.named]
            if not world.reaches(self.named) or host.file is None:
                return
        elif not world.begun:
            return
        yield from self.recover()

    def recover(self) -> Any:
        """Returns what it has come to, or the error that broke it off."""
        result = yield from self._ask()
        for _ in range(_FILLS):
            if isinstance(result, AgentError) or not result.filling:
                break
            yield from self._fill()
            result = yield from self._ask()
        return result

    def _fill(self) -> Any:
        """As `orchestrator.filling`: new agents bring what memory is missing."""
        world = self.world
        yield _REACH
        if not all(world.reaches(role) and not world.hosts[role].stranger for role in world.hosts):
            return
        self._asked += 1
        server = Server(world, world.source)
        yield _REACH
        Filler(world, world.destination, server, self._answer(DESTINATION))
        yield from self._answered(DESTINATION)

    def _ask(self) -> Any:
        world, migration = self.world, self._migration()

        async def ask(role: str, word: str | None) -> Any:
            return world.vouched(await _Question(role, word), migration, role)

        work: Coroutine[Any, Any, Recovered] = world.carry(ask, self._told, _forget)
        answer: Any = None
        world.note(f"{self.name}: begins")
        try:
            while True:
                question = work.send(answer)
                answer = yield from self._put(question)
        except StopIteration as done:
            result: Recovered = done.value
            self.result = result
            return result
        except AgentError as error:
            self.result = error
            world.note(f"{self.name}: {error.message}")
            return error

    def _migration(self) -> Named:
        """With the ids that the orchestrator's record has, or the named host's journal."""
        hosts = self.world.hosts
        ids = {role: host.id for role, host in hosts.items()}
        if self.named:
            history = hosts[self.named].history()
            assert history is not None
            other = DESTINATION if self.named == SOURCE else SOURCE
            ids = {self.named: hosts[self.named].id, other: history.facts.get("other_host", "")}
        return Named(ID, SOURCE, DESTINATION, 7, ids[SOURCE], ids[DESTINATION])

    def _told(self, result: Recovered) -> None:
        world = self.world
        world.told.append(result)
        world.cover["told", result.outcome, "lost" if result.lost else ""] += 1
        world.note(f"{self.name}: {result.outcome}, lost: {result.lost}")

    def _put(self, question: _Question) -> Any:
        world, role = self.world, question.role
        yield _REACH
        if not world.reaches(role):
            return HostUnreachable(host=role, detail="no route to host")
        self._asked += 1
        host = world.hosts[role]
        if host.stranger:
            world.cover["found", role, "another host"] += 1
            if question.forget:
                return False
            return Settled(role, "", "", TABLES[role].unheard, [], host_id="another").to_wire()
        if question.forget:
            Forgetter(world, host, self._answer(role))
        else:
            Settler(world, host, question.word, self._answer(role))
        return (yield from self._answered(role))

    def _answered(self, role: str) -> Any:
        world = self.world
        deadline = world.now + _ANSWER
        while world.now < deadline:
            for number, answer in self.inbox:
                if number == self._asked:
                    self.inbox.clear()
                    return answer if answer is not None else HostUnreachable(host=role, detail="")
            self.inbox.clear()
            yield min(-0.001, world.now - deadline)
        return AgentSilent(host=role, seconds="120")

    def _answer(self, role: str) -> Callable[[Any], None]:
        number, world = self._asked, self.world

        def answer(value: Any) -> None:
            if world.passes(role):
                world.later(0.05 * world.random(), lambda: self.tell((number, value)))
            else:
                world.later(KEEPALIVE, lambda: self.tell((number, None)))

        return answer


class Migration(Recovery):
    """The orchestrator of the migration."""

    __slots__ = ("agents",)

    def __init__(self, world: World) -> None:
        self.agents: list[Agent] = []
        super().__init__(world, "orchestrator")

    def hear(self, role: str, what: str, after: float = 0.02) -> None:
        """An agent says something, or is gone."""
        if what != "gone" and not self.world.passes(role):
            what, after = "gone", KEEPALIVE
        self.world.later(after, lambda: self.tell((role, what)))

    def life(self) -> Life:
        world = self.world
        outcome = yield from self._migrate()
        for agent in self.agents:
            self._leave(agent)
        self.agents.clear()
        if outcome == IN_DOUBT:
            yield 1.0
            self.inbox.clear()
            yield from self.recover()
        elif outcome:
            world.cover["ending", outcome] += 1

    def _migrate(self) -> Any:
        """The outcome; "" where it was not begun."""
        world = self.world
        for role in (SOURCE, DESTINATION):
            yield _PREPARE
            if not world.reaches(role):
                return ""
            self.agents.append(Agent(world, world.hosts[role], self))
            if (yield from self._report(role, 30.0)) != "prepared":
                return ""
        world.begun = True
        yield 0.05
        source, destination = self.agents
        for agent in (destination, source):
            if not self._reaches(agent):
                return IN_DOUBT
            agent.running = True
            agent.wake()
            yield 0.01
        sent = yield from self._report(SOURCE, 300.0)
        taken = yield from self._report(DESTINATION, _OTHER_SIDE)
        if sent == IN_DOUBT and taken in ("migrated", "rolled-back"):
            if self._reaches(source):
                source.resolved = "committed" if taken == "migrated" else "failed"
                world.cover["resolved", source.resolved] += 1
                source.wake()
                sent = yield from self._report(SOURCE, _SOURCE_SIDE)
        if sent == taken == MIGRATED:
            answer = yield from self._put(_Question(DESTINATION, None, forget=True))
            world.note(f"{self.name}: forgotten: {answer}")
        return sent if sent == taken and sent in (MIGRATED, ROLLED_BACK) else IN_DOUBT

    def _report(self, role: str, seconds: float) -> Any:
        """What that agent says next; "gone", or "" where it says nothing."""
        deadline = self.world.now + seconds
        while True:
            for at, (who, what) in enumerate(self.inbox):
                if who == role:
                    del self.inbox[at]
                    return what
            if self.world.now >= deadline:
                return ""
            yield min(-0.001, self.world.now - deadline)

    def _reaches(self, agent: Agent) -> bool:
        """Whether it takes a call."""
        return agent.alive and agent.orchestrator is self and self.world.passes(agent.role)

    def _leave(self, agent: Agent) -> None:
        """The agent hears of it as soon as anything passes, if its lease has not ended before."""
        world = self.world
        if world.passes(agent.role):
            world.later(0.1, agent.abandoned)
        else:
            world.later(world.cut_off[agent.role] - world.now + 0.01, lambda: self._leave(agent))

    def cut(self, role: str) -> None:
        """For this side the connection to that host has died."""
        for agent in self.agents:
            if agent.role == role and agent.orchestrator is not None:
                self._leave(agent)
                self.tell((role, "gone"))

    def buried(self, silently: bool) -> None:
        for agent in self.agents:
            self._leave(agent)
