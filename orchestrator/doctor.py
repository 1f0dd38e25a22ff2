"""`migrate doctor`: reach one host, have it look for leftovers, and say how to end each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.leftovers.facts import CLEAR, HAND, RECOVER, Finding, Look
from orchestrator.errors import AgentSilent
from orchestrator.records import Records
from orchestrator.recovering import Recoverer

T = TypeVar("T")

LEFTOVERS = 1  # exit status: something is left over
_PATIENCE = 60.0  # seconds for a look
_FIX_PATIENCE = 300.0  # seconds: each undo waits up to a minute for CRIU


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found on a host, and what was cleared."""

    host: str
    look: Look  # after clearing, where that was asked for
    cleared: list[Finding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    known: frozenset[str] = frozenset()  # migrations that `migrate recover ID` can name here

    @property
    def findings(self) -> list[Finding]:
        return self.look["findings"]

    @property
    def exit_status(self) -> int:
        if any(one["verdict"] == RECOVER for one in self.findings):
            return EXIT_IN_DOUBT
        return LEFTOVERS if self.findings else 0

    def command(self, finding: Finding) -> str:
        """What ends a leftover."""
        if finding["verdict"] == RECOVER:
            known = finding["migration"] in self.known
            return f"migrate recover {finding['migration'] if known else self.host}"
        if finding["verdict"] == CLEAR:
            return f"migrate doctor {self.host} --fix"
        return finding["command"]

    @property
    def summary(self) -> str:
        """One sentence."""
        number = len(self.findings)
        if not number:
            return f"{self.host}: nothing is left over"
        parts = []
        for verdict, words in (
            (CLEAR, "to be cleared with --fix"),
            (RECOVER, "to be ended by `migrate recover`"),
            (HAND, "for you to decide"),
        ):
            if count := sum(one["verdict"] == verdict for one in self.findings):
                parts.append(f"{count} {words}")
        return f"{self.host}: {number} leftover{'s' * (number > 1)}, {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "findings": [{**one, "command": self.command(one)} for one in self.findings],
            "cleared": list(self.cleared),
            "errors": list(self.errors),
            "under_way": list(self.look["under_way"]),
            "notes": list(self.look["notes"]),
            "error": None,
        }


async def diagnose(
    host: str, ssh_config: str | None, fix: bool, records: Records | None = None
) -> Diagnosis:
    """Look at a host, and clear what is safe where `fix` says so.

    Raises `AgentError` where it cannot be reached, or may not be looked at.
    """
    records = records or Records()
    reacher = Recoverer(ssh_config, records)
    try:
        (agent,) = await reacher.reach(host)
        if isinstance(agent, AgentError):
            raise agent
        known = frozenset(one["id"] for one in records.all())
        if not fix:
            return Diagnosis(host, await _within(_PATIENCE, host, agent.look()), known=known)
        done = await _within(_FIX_PATIENCE, host, agent.fix())
        return Diagnosis(host, done["left"], done["cleared"], done["errors"], known)
    finally:
        await reacher.close()


async def _within(seconds: float, host: str, answer: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise AgentSilent(host=host, seconds=f"{seconds:.0f}") from None
