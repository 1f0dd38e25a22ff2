"""What is kept of a migration beside its result, for its report; and its lines in the log.

It is heard from the agents, after the fact: a phase is announced when it is over, and what both
hosts have timed comes with their reports. Nothing here is in the way of the blackout.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol, TypedDict, get_type_hints

from agent.errors import ProtocolError, shown
from agent.plan import Plan
from agent.probe.facts import validate
from orchestrator import log
from orchestrator.agent_client import Facts
from orchestrator.memory import Choice
from orchestrator.migration import result as results
from orchestrator.migration.result import Json, Span, stall_ms
from orchestrator.migration.run import Listener

_LOG = logging.getLogger(__name__)
_LONGEST = 4096  # characters of a command line, or of a note
_MOST = 1000  # phases, or notes, that are kept
_ROLES = ("source", "destination")
_LEVELS = {results.IN_DOUBT: logging.ERROR, results.MIGRATED: logging.INFO}


class Heard(TypedDict):
    """A phase as the orchestrator heard of its end; from the beginning of the migration."""

    role: str
    phase: str
    start_ms: int | float
    ms: int | float
    unwinding: bool


class Note(TypedDict):
    at_ms: int | float
    text: str


class Account(TypedDict):
    """Of one migration; the phases of both hosts are in `timeline` where the blackout began."""

    command: str  # the process's command line
    comm: str
    processes: int
    memory_mode: str
    addresses: list[str]
    took_ms: int | float
    timeline: list[Span]
    heard: list[Heard]
    notes: list[Note]


def checked(value: object, where: str) -> Account:
    """An account that was written down. Raises `ProtocolError`."""
    if not isinstance(value, dict):
        raise ProtocolError(detail=f"in {where}: {shown(value)} is no account")
    known = get_type_hints(Account)
    made = validate({name: one for name, one in value.items() if name in known}, Account, where)
    for index, span in enumerate(made["timeline"]):
        if span["role"] not in _ROLES:
            raise ProtocolError(
                detail=f"in {where}.timeline[{index}].role: {shown(span['role'])} is no role"
            )
    return made


class Asked(Protocol):
    """`orchestrator.migration.driver.Request`."""

    @property
    def source(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def pid(self) -> int: ...


class Reporter(Listener, Protocol):
    """Is told of everything as it happens."""

    def started(self, request: Any) -> None: ...
    def checked(self, ms: float, plan: Plan, process: Facts, memory: Choice) -> None: ...


class Accountant:
    """A reporter before another: keeps the account, and writes the log."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._begin = time.monotonic()
        self._about: dict[str, Any] = {}
        self._made = Account(
            command="", comm="", processes=0, memory_mode="", addresses=[], took_ms=0.0,
            timeline=[], heard=[], notes=[],
        )  # fmt: skip

    def account(self, timeline: list[Span]) -> Account:
        return {**self._made, "took_ms": self._since(), "timeline": timeline}

    def identify(self, migration: str, request: Asked) -> None:
        """From here on the log's lines of this task, and of those it starts, name the migration."""
        self._about = log.bind(
            migration=migration, source=request.source, destination=request.destination,
            pid=request.pid,
        )  # fmt: skip

    def started(self, request: Any) -> None:
        self._begin = time.monotonic()
        _LOG.info("migration begun")
        self._reporter.started(request)

    def checked(self, ms: float, plan: Plan, process: Facts, memory: Choice) -> None:
        self._about["migration"] = plan.id
        command = " ".join(map(str, process.get("cmdline", [])))
        made = self._made
        made["command"], made["comm"] = command[:_LONGEST], str(process.get("comm", ""))[:_LONGEST]
        made["processes"], made["memory_mode"] = len(plan.tree), plan.memory_mode
        made["addresses"] = [one.address for one in plan.addresses]
        _LOG.info("check passed", extra={
            "ms": ms, "comm": self._made["comm"], "memory": plan.memory,
            "memory_mode": plan.memory_mode, "connections": len(process.get("connections", [])),
        })  # fmt: skip
        self._reporter.checked(ms, plan, process, memory)

    def phase(self, event: dict[str, Any]) -> None:
        self._reporter.phase(event)
        over = event.get("state") == "end"
        name, ms = str(event.get("name")), float(event.get("ms", 0.0))
        role, unwinding = str(event.get("role", "")), event.get("unwinding") is True
        if over and len(self._made["heard"]) < _MOST:
            start = max(self._since() - ms, 0.0)
            self._made["heard"].append(
                Heard(role=role, phase=name, start_ms=start, ms=ms, unwinding=unwinding)
            )
        level = logging.INFO if over else logging.DEBUG
        if _LOG.isEnabledFor(level):
            about = {"phase": name, "role": role, "host": event.get("host"), "undo": unwinding}
            if over:
                _LOG.info("phase over", extra={**about, "ms": ms})
            else:
                _LOG.debug("phase begun", extra=about)

    def progress(self, done: int, total: int) -> None:
        self._reporter.progress(done, total)
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("memory", extra={"done": done, "total": total})

    def note(self, text: str, host: str | None = None) -> None:
        """`host`: who says it."""
        if len(self._made["notes"]) < _MOST:
            self._made["notes"].append(Note(at_ms=self._since(), text=text[:_LONGEST]))
        _LOG.warning("%s", text, extra={"host": host} if host else None)
        self._reporter.note(text)

    def ended(self, result: Json) -> None:
        outcome, error = result["outcome"], result["error"] or {}
        level = _LEVELS.get(outcome, logging.WARNING)
        if _LOG.isEnabledFor(level):
            _LOG.log(level, "migration ended", extra={
                "migration": result["id"], "outcome": outcome,
                "blackout_ms": result["blackout_ms"], "stall_ms": stall_ms(result),
                "streams": len(result["streams"]), "bytes": result["bytes"],
                "code": error.get("code"), "error": error.get("message"),
                "phase": error.get("phase"),
            })  # fmt: skip

    def _since(self) -> float:
        return (time.monotonic() - self._begin) * 1000
