"""A driver between two scripted agents, and answers that wait, die or never come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.errors import AgentError
from agent.plan import Plan
from orchestrator import recovering
from orchestrator.errors import HostUnreachable
from orchestrator.inventory import Target
from orchestrator.memory import Choice
from orchestrator.migration import driver as module
from orchestrator.migration import run
from orchestrator.migration.driver import Driver, Request
from orchestrator.migration.result import Json, exit_status
from tests.support.facts import Case
from tests.wire.scripted_agent import Answer, ScriptedAgent, pair


@dataclass
class Told:
    """Keeps what a reporter is told."""

    phases: list[Json] = field(default_factory=list)
    bytes: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[Plan] = field(default_factory=list)

    def started(self, request: Request) -> None: ...

    def checked(self, ms: float, plan: Plan, process: Json, memory: Choice) -> None:
        self.checks.append(plan)

    def phase(self, event: Json) -> None:
        self.phases.append(event)

    def progress(self, done: int, total: int) -> None:
        self.bytes.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Setting:
    """Two scripted agents and a driver for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        monkeypatch.setattr(module, "open_agent", self._open)
        monkeypatch.setattr(recovering, "open_agent", self._open_again)
        self.again: dict[str, ScriptedAgent] = {}  # by host: the agent that is started afterwards
        self.told = Told()
        self.unreachable: dict[str, AgentError] = {}
        self.never_opens = asyncio.Event()
        self.slow: set[str] = set()
        self.use(Case())

    def use(self, case: Case) -> None:
        self.source, self.destination = pair(case)
        self.driver = Driver(Request("src", "dst", 5000), self.told)

    async def _open(self, target: Target, config: list[str], said: Any) -> Any:
        name = str(target)
        if name in self.unreachable:
            raise self.unreachable[name]
        if name in self.slow:
            await self.never_opens.wait()
        return (self.source if name == "src" else self.destination).channel

    async def _open_again(self, target: Target, config: list[str], said: Any) -> Any:
        name = str(target)
        if name not in self.again:
            raise HostUnreachable(host=name, detail="no route to host")
        return self.again[name].channel

    def patience(self, other_side: float = 0.05, settling: float = 0.05) -> None:
        self._patch.setattr(run, "OTHER_SIDE", other_side)
        self._patch.setattr(run, "SETTLING", settling)

    async def migrate(self) -> Json:
        async with asyncio.timeout(10):
            return await self.driver.migrate()

    def start(self) -> asyncio.Task[Json]:
        return asyncio.create_task(self.migrate())

    @property
    def status(self) -> int:
        return exit_status(self.driver._result, self.driver.error)


def held(report: Answer) -> tuple[asyncio.Event, Answer]:
    """An answer that waits for an event."""
    event = asyncio.Event()

    async def answer(**_: Any) -> Any:
        await event.wait()
        if isinstance(report, AgentError):
            raise report
        return report

    return event, answer


async def never(**_: Any) -> None:
    await asyncio.Event().wait()


def dying(agent: ScriptedAgent, report: Json | None = None) -> Answer:
    """An answer that is the end of the agent's process."""

    async def answer(**_: Any) -> Json | None:
        agent.die()
        return report

    return answer
