"""What a guardian takes for a hang."""

from __future__ import annotations

import math

import pytest

from agent.guardian import stage_of
from agent.journal import Entry, History
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
    assert name == stage and least <= limit <= most


def test_once_the_process_runs_there_is_time_for_the_peers_to_wake() -> None:
    name, limit = stage_of(history(DESTINATION, "locked", "committed", resumed=True))
    assert (name, limit > 5) == ("ending", True)


def test_every_state_has_astage_of() -> None:
    for role, table in TABLES.items():
        for state in table.states:
            assert stage_of(history(role, state))[1] > 0
