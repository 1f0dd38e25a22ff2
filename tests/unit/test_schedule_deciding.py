"""Missed runs, overlap, windows, pauses: each policy on a clock that is only a number."""

from __future__ import annotations

import datetime
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.playbook.model import Schedule
from orchestrator.scheduling import deciding
from orchestrator.scheduling.deciding import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSED,
    OVER,
    RUNNING,
    SKIPPED,
    WAITING,
    Standing,
    Waits,
    decide,
)
from orchestrator.scheduling.times import Times

NOON = datetime.datetime.fromisoformat("2026-06-01T12:00+00:00").timestamp()
MINUTE = 60.0


def times(cron: str = "* * * * *", **more: str) -> Times:
    return Times(Schedule.model_validate({"cron": cron, **more}), "nightly", "salt")


def decided(made: Times | None, now: float, **standing: Any) -> list[tuple[float, str]]:
    """(minutes after noon, state) of what is decided, since noon."""
    found = decide(made, Standing(**{"seen": NOON, **standing}), now)
    return [((one.due - NOON) / MINUTE, one.state) for one in found.decisions]


def why(made: Times | None, now: float, **standing: Any) -> list[str]:
    return [one.why for one in decide(made, Standing(**{"seen": NOON, **standing}), now).decisions]


# --- in time


def test_a_run_begins_when_it_is_due_and_once() -> None:
    made = times()
    assert decided(made, NOON + 59.9) == []
    found = decide(made, Standing(NOON), NOON + 60)
    assert [(one.due, one.state) for one in found.decisions] == [(NOON + 60, RUNNING)]
    assert found.seen == NOON + 60
    assert decided(made, NOON + 61, seen=found.seen) == []
    assert decided(made, NOON - 3600, seen=found.seen) == []  # the clock was put back


def test_jitter_holds_a_run_back() -> None:
    made = times("*/10 * * * *", jitter="5m")
    due = NOON + 600
    begin = made.begin(due)
    assert due < begin < due + 300
    assert decided(made, begin - 0.01) == []
    assert decided(made, begin) == [(10, RUNNING)]


# --- nobody was there


def test_missed_runs_are_skipped_but_for_one_within_the_grace() -> None:
    made = times("*/5 * * * *")
    assert decided(made, NOON + 15 * MINUTE + 61) == [(5, MISSED), (10, MISSED), (15, MISSED)]
    assert decided(made, NOON + 15 * MINUTE + 59) == [(5, MISSED), (10, MISSED), (15, RUNNING)]
    longer = times("*/5 * * * *", grace="7m", overlap="wait")
    assert decided(longer, NOON + 16 * MINUTE) == [(5, MISSED), (10, RUNNING), (15, WAITING)]
    assert set(why(made, NOON + 11 * MINUTE + 1)) == {"nobody was there at its time"}


def test_of_those_that_were_missed_the_last_is_run_where_asked_for() -> None:
    made = times("*/5 * * * *", missed="run-once")
    assert decided(made, NOON + 19 * MINUTE) == [(5, MISSED), (10, MISSED), (15, RUNNING)]
    assert "a later one is in its place" in why(made, NOON + 19 * MINUTE)[0]
    in_time = NOON + 15 * MINUTE + 1
    assert decided(made, in_time) == [(5, MISSED), (10, MISSED), (15, RUNNING)]


def test_none_that_was_missed_is_made_up_for_after_its_window() -> None:
    made = times("0 * * * *", missed="run-once", window="30m")
    assert decided(made, NOON + 90 * MINUTE - 1) == [(60, RUNNING)]
    assert decided(made, NOON + 90 * MINUTE) == [(60, MISSED)]
    assert why(made, NOON + 90 * MINUTE) == ["its window was over when it could have begun"]


def test_after_a_long_time_only_the_last_are_told() -> None:
    found = decide(times(), Standing(NOON), NOON + 30 * 86400 + 1)
    assert len(found.decisions) == deciding.MOST_TOLD
    assert found.seen == NOON + 30 * 86400
    assert [one.state for one in found.decisions[-2:]] == [MISSED, RUNNING]


# --- the one before is still at work


def test_a_run_is_skipped_while_its_predecessor_is_at_work() -> None:
    found = decide(times(), Standing(NOON, running=NOON), NOON + 60)
    assert [(one.state, one.why) for one in found.decisions] == [
        (SKIPPED, "the run of 2026-06-01T12:00:00+00:00 was still at work")
    ]


def test_or_it_waits_for_its_turn() -> None:
    made = times(overlap="wait")
    assert decided(made, NOON + 60, running=NOON) == [(1, WAITING)]
    waiting = (Waits(NOON + 60), Waits(NOON + 120))
    assert decided(made, NOON + 150, seen=NOON + 120, running=NOON, waiting=waiting) == []
    assert decided(made, NOON + 150, seen=NOON + 120, waiting=waiting) == [(1, RUNNING)]
    # one that becomes due meanwhile does not come before those that wait
    later = decided(made, NOON + 180, seen=NOON + 120, waiting=waiting)
    assert later == [(1, RUNNING), (3, WAITING)]


def test_who_waits_until_its_window_is_over_is_not_run() -> None:
    made = times("*/10 * * * *", overlap="wait", window="12m")
    waiting = (Waits(NOON + 600),)
    standing: Any = {"seen": NOON + 1200, "waiting": waiting}
    assert decided(made, NOON + 22 * MINUTE - 1, **standing) == [(10, RUNNING)]
    assert decided(made, NOON + 22 * MINUTE, **standing) == [(10, SKIPPED)]
    assert why(made, NOON + 22 * MINUTE, **standing) == ["its window ended while it waited"]


def test_not_more_wait_than_anybody_wants() -> None:
    waiting = tuple(Waits(NOON - one) for one in range(deciding.MOST_WAITING))
    made = times(overlap="wait")
    assert decided(made, NOON + 60, running=NOON - 999, waiting=waiting) == [(1, SKIPPED)]


# --- paused, asked for, wrong, gone, interrupted


def test_while_it_is_paused_only_what_a_person_asks_for_is_run() -> None:
    made = times(overlap="wait")
    assert decided(made, NOON + 60, paused=True) == [(1, SKIPPED)]
    waiting = (Waits(NOON + 1), Waits(NOON + 2, asked=True))
    assert decided(made, NOON + 30, paused=True, waiting=waiting) == [
        (1 / 60, SKIPPED), (2 / 60, RUNNING),
    ]  # fmt: skip
    interrupted = (Waits(NOON + 1),)
    assert decided(made, NOON + 30, paused=True, interrupted=interrupted) == []


def test_who_is_asked_for_waits_for_the_one_at_work() -> None:
    waiting = (Waits(NOON + 2, asked=True),)
    assert decided(times(), NOON + 30, running=NOON, waiting=waiting) == []
    assert decided(times(), NOON + 30, waiting=waiting) == [(2 / 60, RUNNING)]


def test_a_wrong_playbook_is_not_run_in_its_former_shape() -> None:
    standing: Any = {"obstacle": "its playbook is wrong", "waiting": (Waits(NOON + 5),)}
    assert decided(times(), NOON + 60, **standing) == [(5 / 60, FAILED), (1, FAILED)]
    assert decided(None, NOON + 60, **standing) == [(5 / 60, FAILED)]


def test_what_was_interrupted_is_gone_on_with_before_anything_begins() -> None:
    interrupted = (Waits(NOON - 60),)
    assert decided(times(), NOON + 60, interrupted=interrupted) == [(-1, RUNNING), (1, SKIPPED)]
    made = times(overlap="wait", window="50s")  # its own window is over: it is ended, no more
    assert decided(made, NOON + 60, interrupted=interrupted) == [(-1, RUNNING), (1, WAITING)]
    assert decided(None, NOON + 60, interrupted=interrupted, obstacle="gone") == [(-1, RUNNING)]


# --- all of it together


@dataclass
class World:
    """One playbook, a store that is a dictionary, and a server that comes and goes."""

    made: Times
    luck: random.Random
    now: float = NOON
    seen: float = NOON
    runs: dict[float, str] = field(default_factory=dict)
    ends: dict[float, float] = field(default_factory=dict)
    begun: list[tuple[float, float]] = field(default_factory=list)  # (due, when)
    paused: bool = False

    def standing(self) -> Standing:
        def those(state: str) -> tuple[Waits, ...]:
            return tuple(Waits(due) for due, one in sorted(self.runs.items()) if one == state)

        running = [one.due for one in those(RUNNING)]
        return Standing(
            self.seen, running[0] if running else None, those(INTERRUPTED), those(WAITING),
            self.paused,
        )  # fmt: skip

    def tick(self) -> None:
        for due, end in list(self.ends.items()):
            if end <= self.now:
                self.runs[due] = DONE
                del self.ends[due]
        found = decide(self.made, self.standing(), self.now)
        assert found.seen >= self.seen
        for one in found.decisions:
            before = self.runs.get(one.due)
            assert before in (None, WAITING, INTERRUPTED), "decided twice"
            if before is None:
                assert one.due > self.seen
            self.runs[one.due] = one.state
            if one.state == RUNNING:
                if before != INTERRUPTED:
                    self.begun.append((one.due, self.now))
                self.ends[one.due] = self.now + self.luck.choice([1.0, 20.0, 150.0])
        self.seen = found.seen
        assert len(self.ends) <= 1, "two at work"

    def kill(self) -> None:
        for due in self.ends:
            self.runs[due] = INTERRUPTED
        self.ends.clear()


@pytest.mark.parametrize("seed", range(120))
def test_each_run_that_is_due_is_decided_exactly_once(seed: int) -> None:
    luck = random.Random(seed)
    more: dict[str, str] = {
        "missed": luck.choice(["skip", "run-once"]), "overlap": luck.choice(["skip", "wait"]),
    }  # fmt: skip
    if luck.random() < 0.5:
        more["jitter"] = luck.choice(["10s", "40s"])
    if luck.random() < 0.5:
        more["window"] = luck.choice(["50s", "5m"])
    if luck.random() < 0.3:
        more["grace"] = luck.choice(["1s", "4m"])
    made = times(luck.choice(["* * * * *", "*/2 * * * *"]), **more)
    world = World(made, luck)
    for _ in range(400):
        fate = luck.random()
        if fate < 0.03:
            world.kill()
            world.now += luck.choice([0.1, 30.0, 100.0, 900.0])
        elif fate < 0.05:
            world.paused = not world.paused
        elif fate < 0.06:
            world.now -= 45.0  # somebody sets the clock
        else:
            world.now += luck.uniform(0.1, 8.0)
        world.tick()
    last, world.paused = world.seen, False
    world.made = times("0 0 1 1 *", **more)  # nothing new becomes due
    for _ in range(3000):
        world.now += 5.0
        world.tick()
        if set(world.runs.values()) <= OVER:
            break
    assert set(world.runs.values()) <= OVER
    assert set(world.runs) == set(itertools.takewhile(lambda due: due <= last, made.after(NOON)))
    begun = [due for due, _ in world.begun]
    assert begun == sorted(set(begun)), "begun twice, or not in order"
    for due, when in world.begun:
        assert when >= made.begin(due)
        assert made.schedule.window is None or when < due + made.schedule.window
