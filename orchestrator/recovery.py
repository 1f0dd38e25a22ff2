"""End a migration that nobody ended: ask the source, then the destination, and carry its word.

The destination decides (see `agent.protocol`): what it has not committed it undoes for good before
it says so. A source that has not handed over goes on by itself; one that has needs that word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agent.errors import AgentError
from agent.protocol import DESTINATION, SOURCE, SOURCE_TABLE, Found
from orchestrator.agent_client import AgentClient, SettledFacts
from orchestrator.errors import told
from orchestrator.migration.result import IN_DOUBT, MIGRATED, ROLLED_BACK

OVER = "over"  # neither host knows of it: it has ended, or never begun
PATIENCE = 30.0  # seconds that a host waits for somebody who is at work there

Side = SettledFacts | AgentError


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a migration has come to, from both hosts' words."""

    outcome: str  # MIGRATED, ROLLED_BACK, IN_DOUBT or OVER
    source: Side
    destination: Side

    @property
    def unfinished(self) -> list[str]:
        """The roles whose host may still have something to undo or to end."""
        if self.outcome == OVER:
            return []
        sides = {SOURCE: self.source, DESTINATION: self.destination}
        return [role for role, side in sides.items() if isinstance(side, AgentError) or _asks(side)]

    @property
    def living(self) -> dict[str, list[int]]:
        """The PIDs of the copies, by role."""
        sides = {SOURCE: self.source, DESTINATION: self.destination}
        return {
            role: list(side["living"])
            for role, side in sides.items()
            if not isinstance(side, AgentError)
        }

    @property
    def kept(self) -> str | None:
        """The role whose host keeps its journal until this has been told."""
        if self.outcome == MIGRATED and not self.unfinished:
            return DESTINATION
        return SOURCE if self.outcome == ROLLED_BACK and self.lost else None

    @property
    def lost(self) -> bool:
        """Whether the copy that should go on went with its host."""
        here = {MIGRATED: self.destination, ROLLED_BACK: self.source}.get(self.outcome)
        if here is None or isinstance(here, AgentError):
            return False
        return bool(here["found"]) and not here["living"]

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "lost": self.lost,
            "unfinished": self.unfinished,
            SOURCE: _side(self.source),
            DESTINATION: _side(self.destination),
        }


def _asks(sent: Side) -> bool:
    """Whether a source waits for the destination's word."""
    if isinstance(sent, AgentError):
        return False
    state = SOURCE_TABLE.states.get(sent["state"])
    return state is not None and state.found is Found.ASK


def _side(side: Side) -> dict[str, Any]:
    if isinstance(side, AgentError):
        return {"found": None, "state": None, "living": [], "error": told(side)}
    return {**{name: side[name] for name in ("found", "state", "living")}, "error": None}


Ask = Callable[[str, str | None], Awaitable[Side]]  # a role, the other host's word
Told = Callable[[Recovered], bool | None]  # False: it is not to be forgotten yet


def _to_nobody(_: Recovered) -> None:
    """Whoever asked tells it later."""


async def recover(
    migration: str,
    source: AgentClient | AgentError,
    destination: AgentClient | AgentError,
    told: Told = _to_nobody,
    patience: float = PATIENCE,
) -> Recovered:
    """End it as far as the hosts can be reached (an `AgentError` says why one cannot).

    `told` is called with what it has come to, before the hosts forget that.
    """
    agents = {SOURCE: source, DESTINATION: destination}

    async def ask(role: str, word: str | None) -> Side:
        return await _settle(agents[role], migration, role, word, patience)

    async def forget(role: str) -> None:
        agent = agents[role]
        assert isinstance(agent, AgentClient)
        await agent.forget(migration)

    return await carry(ask, told, forget)


async def carry(ask: Ask, told: Told, forget: Callable[[str], Awaitable[None]]) -> Recovered:
    """Who is asked what, and told what, in which order. No I/O of its own.

    The source first: a destination that knows nothing says "failed", which holds for good only
    when it has been handed to; before, its part may just not have begun.
    """
    sent = await ask(SOURCE, None)
    taken = await ask(DESTINATION, None)
    if not isinstance(taken, AgentError) and taken["word"] is not None and _asks(sent):
        sent = await ask(SOURCE, taken["word"])
    ended = Recovered(_outcome(sent, taken), sent, taken)
    if told(ended) is not False and ended.kept is not None:
        with contextlib.suppress(AgentError):  # else its journal is left, for the next recovery
            await forget(ended.kept)
    return ended


async def _settle(
    agent: AgentClient | AgentError, migration: str, role: str, word: str | None, patience: float
) -> Side:
    if isinstance(agent, AgentError):
        return agent
    try:
        return await agent.settle(migration, role, word, patience)
    except AgentError as error:
        return error


def _outcome(sent: Side, taken: Side) -> str:
    if not isinstance(taken, AgentError) and taken["word"] == "committed":
        return MIGRATED
    if isinstance(sent, AgentError):
        known = not isinstance(taken, AgentError) and taken["word"] == "failed" and taken["found"]
        return ROLLED_BACK if known else IN_DOUBT
    if sent["state"] == "rolled-back":
        return ROLLED_BACK
    if sent["state"] == "migrated":
        return MIGRATED
    if sent["state"]:
        return IN_DOUBT
    if isinstance(taken, AgentError):
        return IN_DOUBT
    return ROLLED_BACK if taken["found"] else OVER


@dataclass(frozen=True, slots=True)
class Named:
    """A migration and its hosts, by the names that reach them."""

    id: str
    source: str
    destination: str
    pid: int = field(default=0)
