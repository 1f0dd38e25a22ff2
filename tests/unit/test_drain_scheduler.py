"""The pure core: which may begin, where each goes, and which processes are meant."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.draining import states
from orchestrator.draining.scheduler import Scheduler, Task
from orchestrator.draining.states import (
    CHECKING,
    FAILED,
    GONE,
    IN_DOUBT,
    LOST,
    MOVED,
    MOVES,
    MOVING,
    OVER,
    RETURNED,
    RETURNING,
    RUNNING,
    UNWELL,
    WAITING,
    IllegalState,
)  # fmt: skip

HOSTS = ("dst", "spare", "third")


@st.composite
def drains(draw: st.DrawFn) -> tuple[list[Task], int, dict[str, int], dict[str, int]]:
    keys = [f"w{number}" for number in range(draw(st.integers(1, 12)))]
    tasks = []
    for place, key in enumerate(keys):
        after = draw(st.sets(st.sampled_from(keys[:place]), max_size=3)) if place else set()
        group = draw(st.sampled_from([None, "cache", "web"]))
        tasks.append(Task(key, draw(st.sampled_from(HOSTS)), group, frozenset(after)))
    budgets = draw(st.dictionaries(st.sampled_from(["cache", "web"]), st.integers(1, 3)))
    incoming = draw(st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 2)))
    return draw(st.permutations(tasks)), draw(st.integers(1, 4)), budgets, incoming


ENDINGS = ([CHECKING, MOVED], [FAILED], [CHECKING, RETURNING, RETURNED], [CHECKING, UNWELL],
           [IN_DOUBT], [LOST], [GONE], [CHECKING, RETURNING, UNWELL])  # fmt: skip


def simulate(scheduler: Scheduler, luck: random.Random, good: float) -> list[tuple[float, str]]:
    """Run it on a clock of its own; each migration takes some time, and ends somehow."""
    now, events, begun = 0.0, [], []
    while True:
        while (task := scheduler.begin()) is not None:
            begun.append((now, task.key))
            ending = ENDINGS[0] if luck.random() < good else luck.choice(ENDINGS)
            at = now
            for state in ending:
                at += luck.uniform(0.1, 5)
                heapq.heappush(events, (at, task.key, state))
            scheduler.check_invariants()
        if not events:
            return begun
        now, key, state = heapq.heappop(events)
        scheduler.enter(key, state)
        scheduler.check_invariants()


@given(drains(), st.randoms(use_true_random=False), st.sampled_from([1.0, 0.8, 0.2]))
def test_every_promise_holds_at_any_time(
    drain: tuple[list[Task], int, dict[str, int], dict[str, int]], luck: random.Random, good: float
) -> None:
    tasks, parallel, budgets, incoming = drain
    scheduler = Scheduler(tasks, parallel, budgets, incoming)
    begun = simulate(scheduler, luck, good)
    assert len({key for _, key in begun}) == len(begun)
    times = {key: at for at, key in begun}
    for task in tasks:
        assert all(times[key] <= times[task.key] for key in task.after if task.key in times)
    if good == 1.0:  # nothing is left over where nothing goes wrong
        assert set(scheduler.states.values()) == {MOVED}
    for task in scheduler.waiting:  # only a budget that is used up for good holds one back
        late = [key for key in task.after if scheduler.states[key] == WAITING]
        assert late or "may be unavailable" in scheduler.why_not(task)


@given(drains(), st.randoms(use_true_random=False), st.integers(0, 12))
def test_after_a_stop_nothing_begins_and_what_runs_ends(
    drain: tuple[list[Task], int, dict[str, int], dict[str, int]], luck: random.Random, after: int
) -> None:
    scheduler = Scheduler(*drain)
    for _ in range(after):
        if (task := scheduler.begin()) is None:
            break
        if luck.random() < 0.5:
            scheduler.enter(task.key, CHECKING)
            scheduler.enter(task.key, MOVED)
    running = {one.key for one in scheduler.running}
    scheduler.stop()
    assert scheduler.begin() is None and {one.key for one in scheduler.running} == running
    assert all(scheduler.why_not(one) == "nothing more is begun" for one in scheduler.waiting)


def test_the_order_is_that_of_the_playbook_unless_something_is_in_the_way() -> None:
    tasks = [Task("a", "dst", "cache"), Task("b", "dst", "cache"), Task("c", "spare"),
             Task("d", "dst", after=frozenset({"b"}))]  # fmt: skip
    scheduler = Scheduler(tasks, 2, {"cache": 1})
    assert [one.key for one in iter(scheduler.begin, None)] == ["a", "c"]
    assert "no more than 1" not in scheduler.why_not(tasks[1])  # two are on the move, too
    scheduler.enter("c", CHECKING), scheduler.enter("c", MOVED)
    assert scheduler.begin() is None
    assert scheduler.why_not(tasks[1]) == "of the group cache no more than 1 may be unavailable"
    assert scheduler.why_not(tasks[3]) == "it comes after b"
    scheduler.enter("a", CHECKING), scheduler.enter("a", MOVED)
    assert [one.key for one in iter(scheduler.begin, None)] == ["b"]
    scheduler.enter("b", FAILED)
    assert [one.key for one in iter(scheduler.begin, None)] == ["d"]  # an order, no condition


@pytest.mark.parametrize("state", [UNWELL, IN_DOUBT, LOST])
def test_what_is_not_well_counts_against_its_budget_for_good(state: str) -> None:
    tasks = [Task("a", "dst", "cache"), Task("b", "dst", "cache")]
    scheduler = Scheduler(tasks, 2, {"cache": 1})
    assert scheduler.begin() == tasks[0]
    if state == UNWELL:
        scheduler.enter("a", CHECKING)
    scheduler.enter("a", state)
    assert scheduler.begin() is None and scheduler.unavailable("cache") == 1


def test_a_host_takes_in_no_more_at_once_than_it_may() -> None:
    scheduler = Scheduler([Task("a", "dst"), Task("b", "dst"), Task("c", "x")], 9, {}, {"dst": 1})
    assert [one.key for one in iter(scheduler.begin, None)] == ["a", "c"]
    assert scheduler.why_not(Task("b", "dst")) == "dst takes in 1 at once"


@pytest.mark.parametrize("before", MOVES)
@pytest.mark.parametrize("after", MOVES)
def test_what_the_table_does_not_have_raises_and_changes_nothing(before: str, after: str) -> None:
    scheduler = Scheduler([Task("a", "dst")], 1, found={"a": before})
    if after in MOVES[before]:
        scheduler.enter("a", after)
        assert scheduler.states["a"] == after
    else:
        with pytest.raises(IllegalState):
            scheduler.enter("a", after)
        assert scheduler.states["a"] == before


def test_the_table_is_whole() -> None:
    assert set().union(*MOVES.values()) <= set(MOVES)
    assert RUNNING & OVER == set() and RUNNING | OVER | {WAITING} == set(MOVES)
    assert states.FAILURES <= OVER and MOVED not in states.UNAVAILABLE
    assert MOVING in RUNNING
