"""Those who end what an agent left: its guardian, and what `migrate recover` starts on a host.

Both take the steps of `agent.recovery.settling`; the guardian kills by `agent.guardian.Patience`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from agent.errors import AgentError
from agent.guardian import Patience
from agent.journal import JournalBusy, JournalError
from agent.protocol import TABLES, Found, Machine
from agent.recovery import RecoveryIncomplete, Settled, settling
from tests.simulation.hosts import FROZEN, ID, Host, Journal, Successor
from tests.simulation.world import AGENTS, Life, Process, World

PATIENCE = 30.0  # seconds for somebody else who holds the journal
GRACE = 10.0  # seconds for an agent in doubt that was asked to go
LOOK = 25.0  # seconds between looks; the real one looks every second
_STEP = 0.05
_POLL = 3.0
_SERVING = 5.0  # seconds, at most


def settle(process: Process, word: str | None) -> Any:
    """`agent.recovery.settle` for whoever holds the journal; returns `Settled` or its error."""
    host, world = process.host, process.world
    assert host is not None
    journal = Journal(host, process)
    found = journal.history.state
    world.note(f"{process.name}: found {found!r}, told {word!r}")
    walk = settling(journal, lambda history: Successor(host, history), word)
    try:
        while True:
            next(walk)
            yield _STEP
    except StopIteration as done:
        settled: Settled = done.value
        rule = TABLES[host.role].states[found].found
        world.cover["found", host.role, found, rule.value, word or ""] += 1
        return settled
    except RecoveryIncomplete as error:
        world.cover["found", host.role, found, "incomplete"] += 1
        return error
    except JournalError as error:
        return error
    finally:
        if process.alive:
            journal.close()


class Guardian(Process):
    """Outlives its agent."""

    __slots__ = ("agent", "dismissed")

    def __init__(self, world: World, host: Host, agent: Any) -> None:
        self.agent = agent
        self.dismissed = False
        super().__init__(world, f"{host.role} guardian", host)

    def life(self) -> Life:
        host, world, agent = self.host, self.world, self.agent
        assert host is not None
        patience = Patience()
        while agent.alive and not self.dismissed:
            history = host.history()
            if history is not None and history.entries and patience.is_over(history, world.now):
                world.note(f"{self.name}: its agent hangs in {history.state}")
                world.cover["guardian", "kills", host.role, history.state] += 1
                agent.die()
                break
            yield -LOOK
        if self.dismissed:
            return
        deadline = world.now + PATIENCE
        while host.file is not None:
            if host.holder is None:
                settled = yield from settle(self, None)
                if not isinstance(settled, AgentError):
                    return
                world.cover["guardian", "tries again", host.role] += 1
            if world.now > deadline:
                return
            yield _POLL


class _Asked(Process):
    """An agent that is there for one question."""

    __slots__ = ("_answer",)

    def __init__(self, world: World, name: str, host: Host, answer: Callable[[Any], None]) -> None:
        self._answer: Callable[[Any], None] | None = answer
        super().__init__(world, name, host)

    def answer(self, value: Any) -> None:
        if self._answer is not None:
            self._answer(value)
            self._answer = None

    def buried(self, silently: bool) -> None:
        self.answer(None)


class Settler(_Asked):
    """Settles, as `agent.recovery.settle_when_free` does."""

    __slots__ = ("word", "asked")

    def __init__(
        self, world: World, host: Host, word: str | None, answer: Callable[[Any], None]
    ) -> None:
        self.word = word
        self.asked = 0.0  # when the agent was asked to go
        super().__init__(world, f"{host.role} recovery", host, answer)

    def life(self) -> Life:
        host, world = self.host, self.world
        assert host is not None
        begin = world.now
        while True:
            if host.file is None:
                unheard = TABLES[host.role].unheard
                settled: Any = Settled(host.role, "", "", unheard, [])
                world.cover["found", host.role, "no journal"] += 1
                break
            if host.holder is None:
                settled = yield from settle(self, self.word)
                break
            if world.now - begin > PATIENCE:
                settled = JournalBusy(id=ID, who="its agent lives")
                break
            self._send_away()
            yield _POLL
        if isinstance(settled, AgentError):
            self.answer(settled)
        else:
            self.answer({**settled.to_wire(), "host_id": host.id})

    def _send_away(self) -> None:
        host, world = self.host, self.world
        assert host is not None
        history, agent = host.history(), world.agents[host.role]
        if history is None or history.state != "in-doubt" or not agent.alive:
            return
        self.asked = self.asked or world.now
        if world.now - self.asked > GRACE:
            world.cover["recovery", "kills an agent in doubt"] += 1
            agent.die()
        elif not agent.paused:
            agent.abandoned()


class Server(Process):
    """A new agent at the source, that serves what memory is missing at the destination."""

    __slots__ = ()

    def __init__(self, world: World, host: Host) -> None:
        super().__init__(world, f"{host.role} recovery", host)

    def life(self) -> Life:
        host = self.host
        assert host is not None
        history = host.history()
        if history is None or host.holder is not None:
            return
        if TABLES[host.role].states[history.state].found is Found.ASK:
            journal = Journal(host, self)
            yield -_SERVING
            journal.close()


class Filler(_Asked):
    """A new agent at the destination, that takes it in."""

    __slots__ = ("server",)

    def __init__(
        self, world: World, host: Host, server: Server, answer: Callable[[Any], None]
    ) -> None:
        self.server = server
        super().__init__(world, f"{host.role} recovery", host, answer)

    def life(self) -> Life:
        host, world = self.host, self.world
        assert host is not None
        history = host.history()
        if history is None or host.holder is not None or history.state != "running":
            return
        journal = Journal(host, self)
        for _ in range(5):
            yield _STEP
            if not self.server.alive or not world.passes(AGENTS):
                break
        else:
            if world.source.holder is self.server and world.source.copy == FROZEN:
                host.missing = False
                world.cover["recovery", "fills"] += 1
                with contextlib.suppress(OSError):
                    Machine(TABLES[host.role], journal.record, history.state).on("filled")
                world.changed = True
        self.server.wake()
        journal.close()
        yield _STEP
        self.answer(True)


class Forgetter(_Asked):
    """As `agent.recovery.forget`."""

    __slots__ = ()

    def __init__(self, world: World, host: Host, answer: Callable[[Any], None]) -> None:
        super().__init__(world, f"{host.role} forgets", host, answer)

    def life(self) -> Life:
        host = self.host
        assert host is not None
        history = host.history()
        if history is None:
            self.answer(False)
        elif host.holder is not None:
            self.answer(JournalBusy(id=ID, who="its agent lives"))
        elif TABLES[host.role].states[history.state].found is Found.OVER:
            try:
                Journal(host, self).remove()
                self.answer(True)
            except JournalError as error:
                self.answer(error)
        yield 0.0
