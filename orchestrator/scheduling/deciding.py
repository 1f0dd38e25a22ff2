"""What becomes of each run that is due: the policies of `schedule:` in a playbook. Pure.

What it promises: each due time is decided once, in order, and `seen` is the last of them; at most
one run of a playbook is begun while none is at work; none is begun while it is paused, but for one
that a person has asked for; none is begun after its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.playbook.model import RUN_ONCE, WAIT
from orchestrator.scheduling.times import Times

MOST_WAITING = 100  # runs of one playbook
MOST_TOLD = 1000  # runs that were missed, one by one
LONGEST_AGO = 400 * 86400.0  # what is looked for when nobody was there

WAITING = "waiting"
RUNNING = "running"
INTERRUPTED = "interrupted"
DONE = "done"
FAILED = "failed"
SKIPPED = "skipped"
MISSED = "missed"
OVER = frozenset({DONE, FAILED, SKIPPED, MISSED})


@dataclass(frozen=True, slots=True)
class Waits:
    """A run that waits for its turn, or was interrupted."""

    due: float
    asked: bool = False  # by a person, with `migrate schedule run`


@dataclass(frozen=True, slots=True)
class Standing:
    """How one playbook stands."""

    seen: float  # the last due time that was decided, or since when it is served
    running: float | None = None  # the due time of the run at work
    interrupted: tuple[Waits, ...] = ()
    waiting: tuple[Waits, ...] = ()
    paused: bool = False
    obstacle: str = ""  # why it cannot be run at all


@dataclass(frozen=True, slots=True)
class Decision:
    """`state` is RUNNING where it is to begin now, or to go on (of one that was interrupted)."""

    due: float
    state: str
    why: str = ""


@dataclass(slots=True)
class Decided:
    seen: float
    decisions: list[Decision] = field(default_factory=list)


def decide(times: Times | None, standing: Standing, now: float) -> Decided:
    """What follows at a time. Without `times` nothing is due any more."""
    return _Deciding(times, standing, now).decided()


class _Deciding:
    def __init__(self, times: Times | None, standing: Standing, now: float) -> None:
        self._times, self._standing, self._now = times, standing, now
        self._at_work = standing.running
        self._waiting = 0
        self._decided = Decided(standing.seen)

    def decided(self) -> Decided:
        for one in self._standing.interrupted:
            self._go_on(one)
        for one in self._standing.waiting:
            self._turn(one)
        ripe = list(self._ripe())
        for due in ripe[:-MOST_TOLD]:  # of every minute of a year: more than anybody reads
            self._decided.seen = due
        for due in ripe[-MOST_TOLD:]:
            self._decided.seen = due
            self._due(due, due == ripe[-1])
        return self._decided

    def _say(self, due: float, state: str, why: str = "") -> None:
        self._decided.decisions.append(Decision(due, state, why))
        if state == RUNNING:
            self._at_work = due

    def _ripe(self) -> Iterator[float]:
        if self._times is None:
            return
        for due in self._times.after(max(self._standing.seen, self._now - LONGEST_AGO)):
            if self._times.begin(due) > self._now:
                return
            yield due

    def _go_on(self, one: Waits) -> None:
        """Also after its window: what is half done is then ended, and nothing more is begun."""
        if self._at_work is None and (one.asked or not self._standing.paused):
            self._say(one.due, RUNNING)

    def _turn(self, one: Waits) -> None:
        times, standing = self._times, self._standing
        if standing.obstacle:
            self._say(one.due, FAILED, standing.obstacle)
        elif times is not None and times.over(one.due, self._now):
            self._say(one.due, SKIPPED, "its window ended while it waited")
        elif standing.paused and not one.asked:
            self._say(one.due, SKIPPED, "it was paused while it waited")
        elif self._at_work is None:
            self._say(one.due, RUNNING)
        else:
            self._waiting += 1

    def _due(self, due: float, last: bool) -> None:
        times = self._times
        assert times is not None
        if self._standing.paused:
            self._say(due, SKIPPED, "it is paused")
        elif times.over(due, self._now):
            self._say(due, MISSED, "its window was over when it could have begun")
        elif times.missed(due, self._now) and times.schedule.missed != RUN_ONCE:
            self._say(due, MISSED, "nobody was there at its time")
        elif times.missed(due, self._now) and not last:
            self._say(due, MISSED, "nobody was there at its time; a later one is in its place")
        elif self._standing.obstacle:
            self._say(due, FAILED, self._standing.obstacle)
        elif self._at_work is None:  # then none waits, either
            self._say(due, RUNNING)
        elif times.schedule.overlap != WAIT:
            self._say(due, SKIPPED, f"the run of {times.shown(self._at_work)} was still at work")
        elif self._waiting >= MOST_WAITING:
            self._say(due, SKIPPED, f"{MOST_WAITING} runs waited already")
        else:
            self._waiting += 1
            self._say(due, WAITING)
