"""What a person sees of schedules: lines while they are served, and lists."""

from __future__ import annotations

import datetime
import sys
from typing import Any

from orchestrator import log, report
from orchestrator.draining import states
from orchestrator.draining.journal import Item
from orchestrator.scheduling.deciding import FAILED, RUNNING
from orchestrator.scheduling.store import SERVED, Row, Run
from orchestrator.scheduling.times import Times

Json = dict[str, Any]


class Silent:
    """For --json and --quiet: what went wrong, and notes, go to stderr."""

    def note(self, text: str) -> None:
        report.say(f"migrate: {report.plain(text)}", sys.stderr)

    def begun(self, run: Run) -> None: ...

    def ended(self, run: Run, results: list[Json]) -> None:
        if run.state == FAILED and not log.takes_stderr():  # there it is already
            self.note(end_of(run))


class Lines(Silent):
    """A line for each thing that happens."""

    def note(self, text: str) -> None:
        report.say(report.plain(text))

    def begun(self, run: Run) -> None:
        word = "begins" if run.times == 1 else "goes on"
        drains = ", ".join(f"{one['node']} ({one['id']})" for one in run.drains)
        self.note(f"{run.playbook}: the run of {shown(run.due)} {word}: {drains}")

    def ended(self, run: Run, results: list[Json]) -> None:
        self.note(end_of(run))


class Draining:
    """Of one run's drains (`orchestrator.draining.drain.Listener`)."""

    def __init__(self, to: Silent, name: str) -> None:
        self._to, self._name = to, name

    def changed(self, item: Item) -> None:
        if isinstance(self._to, Lines):
            way = states.way(item.state, item.destination, item.moved)
            where = f" {way}" if way else ""
            said = f": {item.error['message']}" if item.error else ""
            self._to.note(f"{self._name}: {item.key}{where} {item.state}{said}")

    def progress(self, item: Item, phase: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        self._to.note(f"{self._name}: {text}")


def end_of(run: Run) -> str:
    why = f": {run.why}" if run.why else ""
    return f"{run.playbook}: the run of {shown(run.due)} is {run.state}{why}"


def shown(moment: float | None) -> str:
    """Local time with its offset; "" for None."""
    if moment is None:
        return ""
    return datetime.datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


def playbook_json(row: Row, salt: str, now: float, last: Run | None) -> Json:
    """How one is listed."""
    due = begins = None
    if row.schedule is not None and row.state == SERVED:
        times = Times(row.schedule, row.name, salt)
        due = times.next(max(row.seen, now))
        begins = times.begin(due) if due is not None else None
    return {
        "name": row.name,
        "path": row.path,
        "state": row.state,
        "why": row.why,
        "paused": shown(row.paused) or None,
        "cron": row.schedule.cron if row.schedule else None,
        "time_zone": row.schedule.time_zone if row.schedule else None,
        "next": _in_zone(row, due),
        "begins": _in_zone(row, begins),
        "last": run_json(last, row) if last is not None else None,
    }


def run_json(run: Run, row: Row | None = None) -> Json:
    """One run, with its due time in the schedule's own time zone."""
    return {
        "playbook": run.playbook,
        "due": _in_zone(row, run.due) or shown(run.due),
        "asked": run.asked,
        "outcome": run.state,
        "why": run.why,
        "begun": shown(run.begun) or None,
        "ended": shown(run.ended) or None,
        "times": run.times,
        "window_ends": shown(run.closes) or None,
        "drains": run.drains if run.times else [],
    }


def _in_zone(row: Row | None, moment: float | None) -> str | None:
    if moment is None or row is None or row.schedule is None:
        return None
    return Times(row.schedule, row.name).shown(moment)


def listed(rows: list[Json]) -> list[str]:
    """A line for each schedule."""
    cells = [["schedule", "next", "last", "outcome", "when"]]
    for one in rows:
        last = one["last"] or {"due": "-", "outcome": "-"}
        when = f"{one['cron']} {one['time_zone']}" if one["cron"] else "-"
        state = f"; paused since {one['paused']}" if one["paused"] else ""
        if one["state"] != SERVED:
            state += f"; {one['state']}: {one['why']}"
        cells.append([
            one["name"], one["next"] or "-", last["due"], last["outcome"], when + state,
        ])  # fmt: skip
    return _aligned(cells)


def history(rows: list[Json]) -> list[str]:
    """A line for each run."""
    cells = [["schedule", "due", "begun", "ended", "drain", "outcome"]]
    for one in rows:
        said = f"{one['outcome']}: {one['why']}" if one["why"] else one["outcome"]
        said += " (asked for)" if one["asked"] else ""
        said += f" (gone on with {one['times'] - 1} x)" if one["times"] > 1 else ""
        drains = ",".join(drain["id"] for drain in one["drains"] if drain["id"])
        cells.append([
            one["playbook"], one["due"], one["begun"] or "-", one["ended"] or "-", drains or "-",
            said,
        ])  # fmt: skip
    return _aligned(cells)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns; the last is as long as it is."""
    plain = [[report.plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in plain) for place in range(len(plain[0]) - 1)]
    return [
        "  ".join([*(f"{cell:{size}}" for cell, size in zip(row, widths, strict=False)), row[-1]])
        for row in plain
    ]


def unserved(rows: list[Json], served: bool) -> list[Json]:
    """What a killed server had at work is, as it stands, interrupted."""
    if not served:
        for one in rows:
            if one["outcome"] == RUNNING:
                one["outcome"] = "interrupted"
    return rows
