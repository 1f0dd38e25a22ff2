"""What a playbook must keep to beyond its schema: names that are meant, orders, budgets, times.

Pure; `KnownHosts` is told which hosts there are.
"""

from __future__ import annotations

import datetime
import difflib
import re
import zoneinfo
from collections.abc import Iterable, Iterator
from typing import Protocol

from cronsim import CronSim, CronSimError

from orchestrator.playbook.model import Drain, Playbook, Schedule, Select
from orchestrator.playbook.quantities import spelt
from orchestrator.playbook.values import FORMS, LABEL, why_no_host
from orchestrator.playbook.yaml_source import Path, Problem, Source

_FIELDS = "Minute, hour, day, month, day of the week, as `0 3 * * SUN`."
_A_HOST = "Write [user@]host[:port], a name of your ssh configuration, or a label KEY=VALUE."
_RUNS_LOOKED_AT = 1000  # of a schedule, for the shortest time between two


class KnownHosts(Protocol):
    """Which hosts there are (`orchestrator.playbook.known`)."""

    def problem(self, name: str) -> str:
        """What is wrong with a host's name; "" where it is known."""
        ...

    def near(self, name: str) -> str:
        """A host of nearly this name; "" without."""
        ...

    def has_label(self, label: str) -> bool: ...


def problems(playbook: Playbook, source: Source, hosts: KnownHosts | None) -> Iterator[Problem]:
    for place, drain in enumerate(playbook.drains):
        yield from _Rules(drain, ("drains", place), source, hosts).problems()
    if playbook.schedule is not None:
        yield from _schedule(playbook.schedule, source)


class _Rules:
    """Of one drain."""

    def __init__(self, drain: Drain, place: Path, source: Source, hosts: KnownHosts | None) -> None:
        self._drain, self._place, self._source, self._hosts = drain, place, source, hosts
        self._workloads = drain.workloads or []

    def problems(self) -> Iterator[Problem]:
        yield from self._names()
        yield from self._destinations()
        yield from self._order()
        yield from self._budgets()
        if self._drain.when_empty is not None and not self._drain.cordon:
            message = "a node that is not cordoned may be filled again meanwhile"
            yield self._at("when_empty", message=message, hint="Leave `cordon: false` out.")

    def _at(self, *path: str | int, message: str, hint: str = "") -> Problem:
        return self._source.problem((*self._place, *path), message, hint)

    def _names(self) -> Iterator[Problem]:
        seen: set[str] = set()
        selects: dict[Select, str] = {}
        for place, one in enumerate(self._workloads):
            if one.name in seen:
                message = f"two workloads are named `{one.name}`"
                yield self._at("workloads", place, "name", message=message, hint="Rename one.")
            elif (first := selects.setdefault(one.select, one.name)) != one.name:
                message = f"it selects what `{first}` does, which leaves nothing for it"
                yield self._at("workloads", place, "select", message=message, hint="Keep one.")
            seen.add(one.name)

    def _destinations(self) -> Iterator[Problem]:
        drain = self._drain
        yield from self._host(drain.node, ("node",))
        for place, name in enumerate(drain.to):
            if name == drain.node:
                message = f"`{name}` is the node itself"
                yield self._at("to", place, message=message, hint="Take it out of the list.")
            elif name in drain.to[:place]:
                message = f"`{name}` is in the list twice"
                yield self._at("to", place, message=message, hint="Take one of them out.")
            else:
                yield from self._host(name, ("to", place))
        for place, one in enumerate(self._workloads):
            for index, name in enumerate(one.to or []):
                if name not in drain.to:
                    yield self._at(
                        "workloads", place, "to", index,
                        message=f"`{name}` is not among the drain's own `to`",
                        hint=meant(name, drain.to) or f"Those are: {', '.join(drain.to)}.",
                    )  # fmt: skip

    def _host(self, name: str, path: Path) -> Iterator[Problem]:
        hosts = self._hosts
        if "=" in name and not name.startswith("-"):
            if path == ("node",):
                message = f"`{name}` is a label, and a node is one host"
                yield self._at(*path, message=message, hint="Name the host.")
            elif not re.fullmatch(LABEL, name):
                yield self._at(*path, message=f"{name!r} is not {FORMS[LABEL]}", hint=_A_HOST)
            elif hosts is not None and not hosts.has_label(name):
                yield self._at(
                    *path, message=f"no host has the label `{name}`",
                    hint="Labels are in the inventory (hosts.yaml).",
                )  # fmt: skip
        elif message := why_no_host(name):
            near = hosts.near(name) if hosts is not None else ""
            yield self._at(
                *path, message=message, hint=f"Did you mean `{near}`?" if near else _A_HOST
            )
        elif hosts is not None and (message := hosts.problem(name)):
            near = hosts.near(name)
            hint = f"Did you mean `{near}`?" if near else (
                "Add it to the ssh configuration or to the inventory (hosts.yaml)."
            )  # fmt: skip
            yield self._at(*path, message=message, hint=hint)

    def _order(self) -> Iterator[Problem]:
        names = [one.name for one in self._workloads]
        wrong = False
        for place, one in enumerate(self._workloads):
            for index, name in enumerate(one.after):
                if name not in names:
                    wrong = True
                    yield self._at(
                        "workloads", place, "after", index,
                        message=f"no workload is named `{name}`",
                        hint=meant(name, names) or f"Those are: {', '.join(names)}.",
                    )  # fmt: skip
        cycle = [] if wrong else find_cycle({one.name: one.after for one in self._workloads})
        if cycle:
            place = names.index(cycle[0])
            yield self._at(
                "workloads", place, "after",
                message="the order is a circle: " + " after ".join([*cycle, cycle[0]]),
                hint="Take one of these `after` out.",
            )  # fmt: skip

    def _budgets(self) -> Iterator[Problem]:
        groups = list(dict.fromkeys(one.group for one in self._workloads if one.group))
        seen: set[str] = set()
        for place, budget in enumerate(self._drain.budgets):
            if budget.group in seen:
                message = f"the group `{budget.group}` has two budgets"
                yield self._at("budgets", place, "group", message=message, hint="Keep one.")
            seen.add(budget.group)
            if budget.group not in groups:
                known = f"Those are: {', '.join(groups)}." if groups else (
                    "Give the workloads that are meant a `group`."
                )  # fmt: skip
                yield self._at(
                    "budgets", place, "group",
                    message=f"no workload is of the group `{budget.group}`: "
                    "it would keep nothing available",
                    hint=meant(budget.group, groups) or known,
                )  # fmt: skip


def find_cycle(after: dict[str, list[str]]) -> list[str]:
    """Names of which each comes after the next, and the last after the first; [] without."""
    done: set[str] = set()
    for first in after:
        line: list[str] = [first]
        left = [iter(after[first])]
        while line:
            name = next(left[-1], None)
            if name is None:
                done.add(line.pop())
                left.pop()
            elif name in line:
                return line[line.index(name) :]
            elif name not in done:
                line.append(name)
                left.append(iter(after[name]))
    return []


def _schedule(schedule: Schedule, source: Source) -> Iterator[Problem]:
    path: Path = ("schedule",)
    try:
        zone = zoneinfo.ZoneInfo(schedule.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        yield source.problem(
            (*path, "time_zone"),
            f"no time zone is named `{schedule.time_zone}`",
            meant(schedule.time_zone, zoneinfo.available_timezones()) or "As Europe/Berlin.",
        )
        zone = zoneinfo.ZoneInfo("UTC")
    if len(schedule.cron.split()) != 5:
        yield source.problem(
            (*path, "cron"),
            f"`{schedule.cron}` has {len(schedule.cron.split())} fields, not five",
            _FIELDS,
        )
        return
    try:
        shortest = shortest_interval(schedule.cron, zone)
    except CronSimError as error:
        yield source.problem((*path, "cron"), f"`{schedule.cron}` cannot be read: {error}", _FIELDS)
        return
    if shortest is None:
        yield source.problem(
            (*path, "cron"), f"`{schedule.cron}` never fires", "Is there such a day in that month?"
        )
        return
    jitter, window = schedule.jitter or 0.0, schedule.window
    if jitter >= shortest:
        yield source.problem(
            (*path, "jitter"),
            f"runs may be only {spelt(shortest)} apart, and a jitter of {spelt(jitter)} would "
            "have one begin after the next",
            "Make it shorter.",
        )
    if window is not None and jitter >= window:
        yield source.problem(
            (*path, "window"),
            f"the window of {spelt(window)} may be over before the run begins: the jitter is "
            f"{spelt(jitter)}",
            "Make it longer, or the jitter shorter.",
        )
    grace = schedule.grace
    late = round(jitter + (grace or 0.0), 3)
    if window is not None and grace is not None and jitter + grace >= window:
        yield source.problem(
            (*path, "grace"),
            f"a run that begins {spelt(late)} late (the jitter and the grace) has "
            f"nothing left of the window of {spelt(window)}",
            "Make it shorter, or the window longer.",
        )


def shortest_interval(cron: str, zone: datetime.tzinfo) -> float | None:
    """Seconds between the two runs that are nearest, of the next ones; None: it never fires.

    A time that fires only once more has a year. Raises `CronSimError`.
    """
    begin = datetime.datetime(2024, 1, 1, tzinfo=zone)
    try:
        runs = CronSim(cron, begin)
    except CronSimError:
        minute, hour, day, month, weekday = cron.split()
        CronSim(f"{minute} {hour} {day} * {weekday}", begin)
        CronSim(f"{minute} {hour} * {month} {weekday}", begin)
        return None  # the day is one, and the month, but not together: 30 February
    times = [run.timestamp() for run, _ in zip(runs, range(_RUNS_LOOKED_AT), strict=False)]
    if not times:
        return None
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return min(gaps, default=366 * 86400.0)


def meant(given: str, known: Iterable[str]) -> str:
    """ "Did you mean `x`?", "" where nothing is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"Did you mean `{near[0]}`?" if near else ""
