"""What a migration came to, as the one JSON object; from the reports of both agents. Pure."""

from __future__ import annotations

from typing import Any, TypedDict, TypeVar, get_type_hints

from agent.errors import (
    EXIT_IN_DOUBT,
    EXIT_MIGRATED,
    EXIT_REFUSED,
    EXIT_ROLLED_BACK,
    EXIT_USAGE,
    AgentError,
    Cancelled,
    Field,
    ProtocolError,
    shown,
)
from agent.probe.facts import validate
from orchestrator.errors import from_wire, told
from orchestrator.refusals import Refusal

PHASES = (
    "check",
    "lock",
    "freeze",
    "dump_streams",
    "dump_process",
    "ship",
    "restore_streams",
    "restore_process",
    "commit",
    "take_over",
    "unlock",
    "replay",
)
POST_COPY = "post_copy"
APART_PHASES = ("pre_copy", POST_COPY, "fill")  # only where memory goes apart
SYNC_PHASES = ("sync", "sync_last")  # only where files are brought along
ROLL_BACK = "roll_back"  # of a source that has undone its part
_OPTIONAL = (*APART_PHASES, *SYNC_PHASES, ROLL_BACK)
MIGRATED, ROLLED_BACK, REFUSED, IN_DOUBT = "migrated", "rolled-back", "refused", "in-doubt"
RUNNING = "running"  # of a destination: memory of the process is still at the source
OVER = "over"  # of a recovery: neither host knows of it; it has ended, or never begun
_STATUSES = {
    MIGRATED: EXIT_MIGRATED,
    ROLLED_BACK: EXIT_ROLLED_BACK,
    REFUSED: EXIT_REFUSED,
    IN_DOUBT: EXIT_IN_DOUBT,
}
_NEVER_WOKEN = {"wake_ms": -1.0, "probes": 0}

Json = dict[str, Any]
_Number = int | float
_T = TypeVar("_T")


class ReportedError(TypedDict):
    code: str
    fields: dict[str, Field]
    phase: str


class StreamReport(TypedDict):
    """A stream as it was dumped; the queues are bytes."""

    local: str  # "10.77.0.100:6379"
    remote: str
    state: str
    receive_queue: int
    send_queue: int
    unsent: int


class WakeReport(TypedDict):
    local: str
    remote: str
    wake_ms: _Number  # -1: the peer has not answered
    probes: int


class MovedBytes(TypedDict):
    memory: int
    streams: int
    files: int


class RoundReport(TypedDict):
    """A round of memory that was sent ahead; the last is in the blackout."""

    bytes: int
    ms: _Number


class Span(TypedDict):
    """A phase on one host; from the beginning of the blackout, by the source's clock."""

    role: str
    phase: str
    start_ms: _Number
    ms: _Number


class ErrorTold(TypedDict):
    """What `described` returns."""

    code: str
    message: str
    hint: str
    phase: str


class StreamResult(StreamReport):
    wake_ms: _Number
    probes: int


class MemoryTold(TypedDict):
    """How the memory went, and why so."""

    mode: str
    why: str


class Ending(TypedDict):
    """A result that is only known from a recovery."""

    id: str
    outcome: str
    error: ErrorTold | None
    recovered: bool


class Result(Ending):
    """The object of a migration, as a record keeps it."""

    source: str
    destination: str
    pid: int
    blackout_ms: _Number
    clock_error_ms: _Number
    phases_ms: dict[str, _Number]
    streams: list[StreamResult]
    replayed_packets: int
    bytes: MovedBytes
    memory: MemoryTold | None  # None: it did not come to that


class More(TypedDict):
    """What a result has only where memory went ahead, or files were brought along."""

    rounds: list[RoundReport]
    sync_bytes: int
    sync_left: list[str]


class SourceReport(TypedDict):
    """What `source.run` and `source.resolve` return; times are seconds of CLOCK_MONOTONIC there."""

    outcome: str
    error: ReportedError | None
    phases_ms: dict[str, _Number]
    spans: list[list[str | _Number]]  # [phase, start, seconds]
    lock_at: _Number
    clock_offset: _Number  # the destination's clock minus the source's
    clock_error: _Number
    streams: list[StreamReport]
    bytes: MovedBytes
    memory_mode: str  # stop, pre-copy or post-copy, as it went
    rounds: list[RoundReport]
    sync_bytes: int  # over the link, in both directions, for files that were brought along
    sync_left: list[str]  # sockets and devices among these files: they are not brought
    relayed: bool


class DestinationReport(TypedDict):
    """What `destination.run` returns; `resumed_at` is 0 where nothing was resumed."""

    outcome: str
    error: ReportedError | None
    phases_ms: dict[str, _Number]
    spans: list[list[str | _Number]]
    resumed_at: _Number
    wake: list[WakeReport]
    replayed_packets: int


def source_report(value: Json) -> SourceReport:
    """Raises `ProtocolError` where it is not one; what is more than asked for is passed over."""
    return _report(value, SourceReport, (MIGRATED, ROLLED_BACK, IN_DOUBT), "the source's report")


def destination_report(value: Json) -> DestinationReport:
    """Raises `ProtocolError` where it is not one; what is more than asked for is passed over."""
    outcomes = (MIGRATED, ROLLED_BACK, RUNNING)
    return _report(value, DestinationReport, outcomes, "the destination's report")


def checked(value: object, where: str) -> Json:
    """A result that was written down: a `Result`, or an `Ending`.

    What is more than asked for is passed over. Raises `ProtocolError`.
    """
    if not isinstance(value, dict):
        raise ProtocolError(detail=f"in {where}: {shown(value)} is not a result")
    shape = Result if "streams" in value else Ending
    made: Json = dict(_report({"recovered": False, **value}, shape, (*_STATUSES, OVER), where))
    for name, hint in get_type_hints(More).items():
        if name in value:
            made[name] = validate(value[name], hint, f"{where}.{name}")
    return made


def _report(value: Json, shape: type[_T], outcomes: tuple[str, ...], where: str) -> _T:
    known = get_type_hints(shape)
    report = validate({key: one for key, one in value.items() if key in known}, shape, where)
    if value["outcome"] not in outcomes:
        raise ProtocolError(detail=f"in {where}: no outcome is named {shown(value['outcome'])}")
    return report


def empty(migration_id: str, source: str, destination: str, pid: int) -> Json:
    """The object of a migration that has not begun, with every key."""
    return {
        "id": migration_id,
        "outcome": REFUSED,
        "error": None,
        "source": source,
        "destination": destination,
        "pid": pid,
        "blackout_ms": 0.0,
        "clock_error_ms": 0.0,
        "phases_ms": dict.fromkeys(PHASES, 0.0),
        "streams": [],
        "replayed_packets": 0,
        "bytes": {"memory": 0, "streams": 0, "files": 0},
        "memory": None,
    }


def described(error: AgentError, phase: str) -> Json:
    """{"code", "message", "hint", "phase"} of an error."""
    return {**told(error), "phase": phase}


def refused(refusals: list[Refusal]) -> Json:
    """The same of the first refusal, which says how many more there are."""
    first = refusals[0]
    more = len(refusals) - 1
    message = f"{first.message} (and {more} more; see `migrate check`)" if more else first.message
    return {"code": first.code, "message": message, "hint": first.hint, "phase": "check"}


def outcome_of(error: AgentError, *, checked: bool = True) -> str:
    """The outcome where an error ended all before the run; `checked`: the check was over."""
    if error.exit_status in (EXIT_REFUSED, EXIT_USAGE):
        return REFUSED
    return ROLLED_BACK if checked or isinstance(error, Cancelled) else REFUSED


def exit_status(result: Json, error: AgentError | None = None) -> int:
    """The command's status; a usage error that was found late keeps its own."""
    if result["outcome"] == REFUSED and error is not None and error.exit_status == EXIT_USAGE:
        return EXIT_USAGE
    status = _STATUSES[result["outcome"]]
    return max(status, error.exit_status) if error is not None and not status else status


def merge(result: Json, source: SourceReport | None, destination: DestinationReport | None) -> None:
    """Fill `result` in from the reports; the outcome is there already, and a doubt's error."""
    for report in (source, destination):
        if report is not None:
            for phase, ms in report["phases_ms"].items():
                if phase in result["phases_ms"] or phase in _OPTIONAL:
                    before = result["phases_ms"].get(phase, 0.0)
                    result["phases_ms"][phase] = before + float(ms)
    if destination is not None:
        result["replayed_packets"] = destination["replayed_packets"]
    if source is not None:
        result["bytes"] = source["bytes"]
        if source["rounds"]:
            result["rounds"] = source["rounds"]
        if source["sync_bytes"]:
            result["sync_bytes"] = source["sync_bytes"]
        if source["sync_left"]:
            result["sync_left"] = source["sync_left"]
        result["clock_error_ms"] = source["clock_error"] * 1000.0
        result["streams"] = _streams(source, destination)
        if destination is not None and destination["resumed_at"]:
            resumed = destination["resumed_at"] - source["clock_offset"]
            result["blackout_ms"] = (resumed - source["lock_at"]) * 1000.0
    if result["outcome"] != MIGRATED and result["error"] is None:
        result["error"] = _error(source) or _error(destination)


def filled(result: Json, spans: list[Span], seconds: float) -> None:
    """All memory is at the destination, so long after the resume: agents that were lost on the way
    had counted their own part of it."""
    result["phases_ms"][POST_COPY] = seconds * 1000.0
    for span in spans:
        if span["phase"] == POST_COPY:
            span["ms"] = seconds * 1000.0


def stall_ms(result: Json) -> float:
    """What the last of the peers to wake has felt, as far as it is known."""
    woken = [stream["wake_ms"] for stream in result["streams"] if stream["wake_ms"] >= 0]
    return float(result["blackout_ms"]) + max(woken, default=0.0)


def timeline(source: SourceReport | None, destination: DestinationReport | None) -> list[Span]:
    """What both hosts were at; nothing where the blackout never began."""
    if source is None or not (begin := source["lock_at"]):
        return []
    spans = [("source", one, begin) for one in source["spans"]]
    if destination is not None:
        there = begin + source["clock_offset"]
        spans += [("destination", one, there) for one in destination["spans"]]
    found: list[Span] = []
    for role, span, zero in spans:
        match span:
            case [str(phase), int() | float() as start, int() | float() as seconds]:
                start_ms, ms = (start - zero) * 1000.0, seconds * 1000.0
                found.append(Span(role=role, phase=phase, start_ms=start_ms, ms=ms))
    return found


def _streams(source: SourceReport, destination: DestinationReport | None) -> list[Json]:
    wakes: dict[tuple[str, str], Json] = {}
    for one in destination["wake"] if destination is not None else []:
        wakes[one["local"], one["remote"]] = {
            "wake_ms": float(one["wake_ms"]),
            "probes": one["probes"],
        }
    return [
        {**stream, **wakes.get((stream["local"], stream["remote"]), _NEVER_WOKEN)}
        for stream in source["streams"]
    ]


def _error(report: SourceReport | DestinationReport | None) -> Json | None:
    if report is None or report["error"] is None:
        return None
    return described(from_wire(report["error"]), report["error"]["phase"])
