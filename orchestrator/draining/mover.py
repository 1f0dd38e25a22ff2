"""Moves one workload with the migration's own driver, and gives it up where it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from agent.errors import AgentError
from agent.plan import Plan
from orchestrator.memory import Choice
from orchestrator.migration.driver import Driver, Request
from orchestrator.migration.result import Json
from orchestrator.playbook.model import Limits
from orchestrator.playbook.quantities import spelt
from orchestrator.records import Records

_LOOK = 0.1  # seconds between two looks at the limits
_GIB = 1 << 30


class TooSlow(AgentError):
    code = "too-slow"
    template = "it was given up after {seconds} s: {detail}"
    hint_template = "Raise the limit in the playbook, or drain when there is less to do."


@dataclass(frozen=True, slots=True)
class Move:
    """What one migration came to."""

    result: Json
    error: AgentError | None  # of the time limits: it is why the migration was undone


class Moving(Protocol):
    """A migration under way."""

    def interrupt(self) -> None: ...
    async def go(self) -> Move: ...


class Mover:
    """One migration, in this process."""

    def __init__(
        self,
        request: Request,
        records: Records,
        limits: Limits,
        begun: Callable[[Plan], None],
        said: Callable[[str, int, int], None],
        note: Callable[[str], None],
    ) -> None:
        """`begun` is called with the plan, before anything is touched; `said` with the phase, and
        the bytes of memory that are there and that there are."""
        self._limits, self._begun, self._said, self._note = limits, begun, said, note
        self._driver = Driver(request, self, records)
        self._memory, self._phase = 0, "check"
        self._heard = 0.0
        self._slow: TooSlow | None = None

    def interrupt(self) -> None:
        """Undo it while that is possible."""
        self._driver.interrupt()

    async def go(self) -> Move:
        watching = asyncio.create_task(self._watch())
        try:
            result = await self._driver.migrate()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return Move(result, self._slow)

    async def _watch(self) -> None:
        now = asyncio.get_running_loop().time
        begin = self._heard = now()
        while self._slow is None:
            await asyncio.sleep(_LOOK)
            detail = self._too_slow(now() - begin, now() - self._heard)
            if detail:
                self._slow = TooSlow(seconds=f"{now() - begin:.1f}", detail=detail)
                self._driver.interrupt()

    def _too_slow(self, since_begin: float, since_heard: float) -> str:
        """Why it is to be given up, in words; "" where it is not."""
        limits = self._limits
        if limits.per_gib is not None:
            most = limits.per_gib * max(1, -(-self._memory // _GIB))
            if since_begin > most:
                return f"limits.per_gib allows {spelt(round(most, 3))} for its memory"
        if limits.no_progress is not None and since_heard > limits.no_progress:
            return f"no progress for {spelt(limits.no_progress)}, in the phase {self._phase}"
        return ""

    # --- what the driver tells (`orchestrator.migration.driver.Reporter`)

    def started(self, request: Request) -> None: ...

    def checked(self, ms: float, plan: Plan, process: dict[str, Any], memory: Choice) -> None:
        self._memory = plan.memory
        self._got_on()
        self._begun(plan)

    def phase(self, event: dict[str, Any]) -> None:
        if event.get("state") == "begin":
            self._phase = str(event.get("name"))
        self._got_on()
        self._said(self._phase, 0, 0)

    def progress(self, done: int, total: int) -> None:
        self._got_on()
        self._said(self._phase, done, total)

    def note(self, text: str) -> None:
        self._note(text)

    def _got_on(self) -> None:
        self._heard = asyncio.get_running_loop().time()
