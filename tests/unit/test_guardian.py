"""What a guardian takes for a hang."""

from __future__ import annotations

import math

import pytest

from agent.guardian import Patience, stage_of
from agent.history import Entry, History
from agent.protocol import DESTINATION, SOURCE, TABLES

ID = "20261124-120000-abcdef"


def history(role: str, *states: str, **facts: object) -> History:
    entries = [Entry(state, 0.0, {}) for state in states]
    plan = Entry("", 0.0, {"plan": {"max_blackout": 3.0}, **facts})
    return History(ID, role, [*entries, plan])


@pytest.mark.parametrize(("role", "states", "stage", "least", "most"), [
    (SOURCE, ["ready"], "preparing", 60, 600),
    (SOURCE, ["ready", "locked"], "blackout", 63, 200),
    (SOURCE, ["ready", "locked", "frozen"], "blackout", 63, 200),
    (SOURCE, ["ready", "locked", "frozen", "rolling-back"], "blackout", 63, 200),
    (SOURCE, ["ready", "locked", "frozen", "handed-over"], "blackout", 63, 200),
    (SOURCE, ["ready", "locked", "handed-over", "in-doubt"], "in doubt", math.inf, math.inf),
    (SOURCE, ["ready", "locked", "handed-over", "committed"], "ending", 10, 60),
    (SOURCE, ["ready", "locked", "handed-over", "committed", "migrated"], "ending", 10, 60),
    (DESTINATION, ["ready", "locked", "undoing", "rolled-back"], "blackout", 63, 200),
    (DESTINATION, ["ready", "locked", "restoring"], "blackout", 63, 200),
    (DESTINATION, ["ready", "locked", "taking-over", "committed"], "releasing", 1, 5),
    (DESTINATION, ["ready", "locked", "undoing"], "blackout", 63, 200),
])  # fmt: skip
def test_each_stage_has_its_time(
    role: str, states: list[str], stage: str, least: float, most: float
) -> None:
    name, limit = stage_of(history(role, *states))
    assert name.partition(",")[0] == stage and least <= limit <= most


def test_once_the_process_runs_there_is_time_for_the_peers_to_wake() -> None:
    name, limit = stage_of(history(DESTINATION, "locked", "committed", resumed=True))
    assert (name.partition(",")[0], limit > 5) == ("ending", True)


@pytest.mark.parametrize(("states", "may_take_long"), [
    (["ready"], True),
    (["ready", "locked"], False),
    (["ready", "locked", "committed"], True),
])  # fmt: skip
def test_one_that_says_that_it_gets_on_has_its_time_anew(
    states: list[str], may_take_long: bool
) -> None:
    """Memory is sent ahead of the lock, and fills in after the commit; nothing else is long."""
    patience = Patience()
    past = history(SOURCE, *states)
    _, limit = stage_of(past)
    assert not patience.is_over(past, 0.0)
    past.entries.append(Entry("", 0.0, {}))
    assert patience.is_over(past, limit + 1) != may_take_long
    assert patience.is_over(past, 2 * limit + 2)


def test_every_state_has_astage_of() -> None:
    for role, table in TABLES.items():
        for state in table.states:
            assert stage_of(history(role, state))[1] > 0
