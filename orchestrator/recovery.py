"""End a migration that nobody ended: ask the source, then the destination, and carry its word.

The destination decides (see `agent.protocol`): what it has not committed it undoes for good before
it says so. A source that has not handed over goes on by itself; one that has needs that word.
A host that knows nothing of a migration is believed only where it is the very one that took part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.protocol import (
    DESTINATION,
    DESTINATION_TABLE,
    GONE,
    SETTLED,
    SOURCE,
    SOURCE_TABLE,
    TABLES,
    Found,
)
from orchestrator.agent_client import AgentClient, SettledFacts
from orchestrator.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable, told
from orchestrator.migration.result import IN_DOUBT, MIGRATED, OVER, ROLLED_BACK

PATIENCE = 30.0  # seconds that a host waits for somebody who is at work there

LOST = "lost"  # what is found on a host that somebody has declared lost

Side = SettledFacts | AgentError


class AnotherHost(AgentError):
    code = "another-host"
    template = "{host} did not take part in migration {id}, or has lost its journals since"
    hint_template = (
        "Have the name lead to the host that did (-F). If that is gone for good, and cannot come "
        "back with the process: `migrate recover {id} --lost {host}`."
    )
    exit_status = EXIT_IN_DOUBT


_AWAY = (HostUnreachable, HostKeyUnknown, HostKeyChanged, AnotherHost)


@dataclass(frozen=True, slots=True)
class Named:
    """A migration and its hosts: the names that reach them, and their ids ("": not known)."""

    id: str
    source: str
    destination: str
    pid: int = 0
    source_id: str = ""
    destination_id: str = ""

    def host(self, role: str) -> tuple[str, str]:
        """The name and the id of one."""
        if role == SOURCE:
            return self.source, self.source_id
        return self.destination, self.destination_id


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
        return [
            role
            for role, side in sides.items()
            if isinstance(side, AgentError) or _asks(side) or _waits(side)
        ]

    @property
    def waits(self) -> bool:
        """Whether the process runs at the destination, and memory of it is still at the source."""
        return _waits(self.destination)

    @property
    def filling(self) -> bool:
        """Whether that memory can be brought now."""
        sent = self.source
        frozen = not isinstance(sent, AgentError) and _asks(sent) and bool(sent["living"])
        return self.waits and frozen

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
        role, side = DESTINATION, self.destination
        if self.outcome == ROLLED_BACK and self.lost:
            role, side = SOURCE, self.source
        elif self.outcome != MIGRATED or self.unfinished:
            return None
        return None if isinstance(side, AgentError) or side["found"] == LOST else role

    @property
    def lost(self) -> bool:
        """Whether the copy that should go on went with its host."""
        here = {MIGRATED: self.destination, ROLLED_BACK: self.source}.get(self.outcome)
        if here is None or isinstance(here, AgentError):
            return False
        return here["lost"]

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


def _waits(taken: Side) -> bool:
    """Whether a destination runs the process, and waits for its memory."""
    if isinstance(taken, AgentError):
        return False
    state = DESTINATION_TABLE.states.get(taken["state"])
    return state is not None and state.found is Found.WAIT


def _has_nothing(sent: Side) -> bool:
    """Whether the source, which had handed over, has no copy any more."""
    if isinstance(sent, AgentError):
        return False
    return sent["found"] == LOST or (_asks(sent) and not sent["living"])


def _side(side: Side) -> dict[str, Any]:
    if isinstance(side, AgentError):
        return {"found": None, "state": None, "living": [], "error": told(side)}
    return {**{name: side[name] for name in ("found", "state", "living")}, "error": None}


Ask = Callable[[str, str | None], Awaitable[Side]]  # a role, the other host's word
Told = Callable[[Recovered], bool | None]  # False: it is not to be forgotten yet


def _to_nobody(_: Recovered) -> None:
    """Whoever asked tells it later."""


async def recover(
    named: Named,
    source: AgentClient | AgentError,
    destination: AgentClient | AgentError,
    told: Told = _to_nobody,
    lost: str | None = None,
    patience: float = PATIENCE,
) -> Recovered:
    """End it as far as the hosts can be reached (an `AgentError` says why one cannot).

    `told` is called with what it has come to, before the hosts forget that. `lost`: the name of a
    host that somebody knows will never come back; it counts where that host cannot be reached.
    """
    agents = {SOURCE: source, DESTINATION: destination}

    async def ask(role: str, word: str | None) -> Side:
        side = vouched(await _settle(agents[role], named.id, role, word, patience), named, role)
        if lost == named.host(role)[0] and isinstance(side, _AWAY):
            return gone(role)
        return side

    async def forget(role: str) -> None:
        agent = agents[role]
        assert isinstance(agent, AgentClient)
        await agent.forget(named.id)

    return await carry(ask, told, forget)


async def carry(ask: Ask, told: Told, forget: Callable[[str], Awaitable[None]]) -> Recovered:
    """Who is asked what, and told what, in which order. No I/O of its own.

    The source first: a destination that knows nothing says "failed", which holds for good only
    when it has been handed to; before, its part may just not have begun.
    """
    sent = await ask(SOURCE, None)
    settled = not isinstance(sent, AgentError) and not _asks(sent)
    taken = await ask(DESTINATION, SETTLED if settled else None)
    if _waits(taken) and _has_nothing(sent):
        taken = await ask(DESTINATION, GONE)
    if not isinstance(taken, AgentError) and taken["word"] is not None and _asks(sent):
        sent = await ask(SOURCE, taken["word"])
    ended = Recovered(_outcome(sent, taken), sent, taken)
    if told(ended) is not False and ended.kept is not None:
        with contextlib.suppress(AgentError):  # else its journal is left, for the next recovery
            await forget(ended.kept)
    return ended


def vouched(side: Side, named: Named, role: str) -> Side:
    """A host's answer, as far as it is to be believed: that it knows nothing says something only of
    the host that took part."""
    if isinstance(side, AgentError) or side["found"]:
        return side
    name, expected = named.host(role)
    if not expected:  # the source was never told whom to ask: it has not handed over
        return {**side, "word": None}
    return side if side["host_id"] == expected else AnotherHost(host=name, id=named.id)


def gone(role: str) -> SettledFacts:
    """The answer in place of a host that will never come back."""
    return SettledFacts(
        role=role, found=LOST, state="", word=TABLES[role].unheard, living=[], lost=True, host_id=""
    )


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
    if not isinstance(taken, AgentError) and (taken["word"] == "committed" or _waits(taken)):
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
    return ROLLED_BACK if taken["found"] not in ("", LOST) else OVER
