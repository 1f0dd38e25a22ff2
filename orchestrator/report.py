"""What a person reads while and after a migration: steps with times, progress, a summary.

Steps and summary go to stdout, errors to stderr. Colour and the progress bar only on a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import sys
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator import log

if TYPE_CHECKING:  # every verb says something, and few need what reaches hosts
    from agent.plan import Plan
    from orchestrator.agent_client import Facts
    from orchestrator.memory import Choice
    from orchestrator.migration.driver import Request
    from orchestrator.migration.result import Json
    from orchestrator.refusals import Refusal

_LOG = logging.getLogger(__name__)
_NAMES = {
    "sync": "bring files",
    "sync_last": "files, again",
    "pre_copy": "copy ahead",
    "post_copy": "copy the rest",
    "dump_streams": "dump streams",
    "dump_process": "dump process",
    "restore_streams": "restore streams",
    "restore_process": "restore process",
    "take_over": "take over",
    "roll_back": "roll back",
}
_SHOWN_STREAMS = 10
_BAR_FROM = 32 << 20  # bytes of memory for which a progress bar is worth it


class Silent:
    """For --json and --quiet: notes go to stderr, the rest nowhere."""

    def started(self, request: Request) -> None: ...

    def checked(self, ms: float, plan: Plan, process: Facts, memory: Choice) -> None: ...

    def phase(self, event: dict[str, Any]) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        if not log.takes_stderr():  # there it is already
            say(f"migrate: {plain(text)}", sys.stderr)


class Human(Silent):
    """Steps as they end, and a bar for the memory."""

    def __init__(self, verb: str) -> None:
        """`verb`: "Moving" or "Checking"."""
        self._verb = verb
        self._bar: Any = None
        self._task: Any = None

    def started(self, request: Request) -> None:
        say(f"{self._verb} PID {request.pid} from {request.source} to {request.destination}")

    def checked(self, ms: float, plan: Plan, process: Facts, memory: Choice) -> None:
        name = plain(str(process.get("comm", plan.pid)))
        addresses = ", ".join(one.address for one in plan.addresses) or "none"
        say(
            f"  {name}: {count(len(plan.tree), 'process', 'es')}, {size(plan.memory)}, "
            f"{count(len(process.get('connections', [])), 'connection')}, "
            f"service address {addresses}; migration {plan.id}"
        )
        say(plain(f"  memory: {memory.mode}, {memory.why}"))
        if plan.syncs:
            say(plain(f"  to bring: {', '.join((*plan.sync_dirs, *plan.sync_files))}"))
        self._step("check", ms, False)

    def phase(self, event: dict[str, Any]) -> None:
        if event.get("state") == "end":
            name = str(event.get("name"))
            self._step(_NAMES.get(name, name), float(event.get("ms", 0)), event.get("unwinding"))

    def _step(self, name: str, ms: float, unwinding: object) -> None:
        self._end_bar()
        say(f"  {'undo: ' if unwinding else ''}{name:16} {ms:9.1f} ms")

    def progress(self, done: int, total: int) -> None:
        if total < _BAR_FROM or not sys.stdout.isatty():
            return
        with contextlib.suppress(OSError):  # the terminal may have gone
            if self._bar is None:
                self._bar, self._task = _bar(total)
            self._bar.update(self._task, completed=done, total=total)

    def _end_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError):
                bar.stop()

    def note(self, text: str) -> None:
        self._end_bar()
        super().note(text)


def _bar(total: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("  memory", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, transient=True)
    task = bar.add_task("memory", total=total)
    bar.start()
    return bar, task


def summary(result: Json, verbose: bool) -> None:
    """The end of a migration, in words."""
    from orchestrator.migration.result import IN_DOUBT, MIGRATED, ROLLED_BACK

    outcome = result["outcome"]
    if outcome == MIGRATED:
        moved = result["bytes"]
        say(
            f"Migrated. Blackout {result['blackout_ms']:.1f} ms "
            f"(± {result['clock_error_ms']:.2f} ms between the clocks), "
            f"{count(len(result['streams']), 'stream')}, {size(moved['memory'])} of memory, "
            f"{size(moved['streams'])} in queues"
            + (f", {size(result['sync_bytes'])} for files" if "sync_bytes" in result else "")
        )
        say(f"  {_wakes(result)}{count(result['replayed_packets'], 'packet')} replayed")
        if verbose or 0 < len(result["streams"]) <= _SHOWN_STREAMS:
            _table(result["streams"])
    elif outcome == ROLLED_BACK:
        phase = (result["error"] or {}).get("phase")
        where = f" in the phase {_NAMES.get(phase, phase)!r}" if phase else ""
        code = (result["error"] or {}).get("code")
        fate = "has ended" if code in ("copy-ended", "copy-lost") else "goes on"
        say(plain(f"Rolled back{where}: PID {result['pid']} {fate} at {result['source']}"))
    elif outcome == IN_DOUBT:
        say(f"In doubt: PID {result['pid']} needs a look by hand")


def _wakes(result: Json) -> str:
    times = [stream["wake_ms"] for stream in result["streams"]]
    awake = sorted(ms for ms in times if ms >= 0)
    if not times:
        return ""
    asleep = len(times) - len(awake)
    text = "no peer has answered yet; "
    if awake:
        text = (
            f"peers awake after {awake[0]:.1f} / {statistics.median(awake):.1f} / "
            f"{awake[-1]:.1f} ms (least, median, most); "
        )
        text += f"{asleep} have not answered yet; " if asleep else ""
    return text


def _table(streams: list[Json]) -> None:
    say(f"  {'local':28} {'remote':28} {'received':>9} {'to send':>9} {'unsent':>9} {'wake':>9}")
    for one in streams:
        wake = f"{one['wake_ms']:.1f} ms" if one["wake_ms"] >= 0 else "-"
        say(
            plain(
                f"  {one['local']:28} {one['remote']:28} {one['receive_queue']:9} "
                f"{one['send_queue']:9} {one['unsent']:9} {wake:>9}"
            )
        )


def refusals(found: list[Refusal]) -> None:
    """Every reason against the migration, each with its fix."""
    for one in found:
        problem(one.message, one.hint)


def problem(message: str, hint: str) -> None:
    """An error and what to do about it."""
    if log.takes_stderr():
        _LOG.error("%s", message, extra={"hint": hint or None})
        return
    say(f"{_coloured('error:', '31')} {plain(message)}", sys.stderr)
    if hint:
        say(f"{_coloured('hint:', '36')}  {plain(hint)}", sys.stderr)


def plain(text: str) -> str:
    """What a host has sent, without what could drive the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line; a reader or a terminal that has gone does not stop the migration."""
    stream = stream or sys.stdout
    if stream is sys.stderr and log.takes_stderr():
        _LOG.warning("%s", text)
        return
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=stream, flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _coloured(text: str, colour: str) -> str:
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\033[{colour}m{text}\033[0m"
    return text


def count(number: int, word: str, plural: str = "s") -> str:
    return f"{number} {word}{plural if number != 1 else ''}"


def size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
