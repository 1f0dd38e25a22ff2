"""`migrate doctor`: reach one host, have it look for leftovers, and say how to end each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.leftovers.facts import CLEAR, HAND, RECOVER, Finding, Look
from orchestrator.records import Records
from orchestrator.recovering import Recoverer

LEFTOVERS = 1  # exit status: something is left over


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
            return Diagnosis(host, await agent.look(), known=known)
        done = await agent.fix()
        return Diagnosis(host, done["left"], done["cleared"], done["errors"], known)
    finally:
        await reacher.close()
