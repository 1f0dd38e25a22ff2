"""The tables of states: what they allow, what they refuse, and what must hold of every path."""

from __future__ import annotations

from itertools import product

import pytest

from agent.states import DESTINATION_TABLE, SOURCE_TABLE, IllegalTransition, Machine, Table

TABLES = [SOURCE_TABLE, DESTINATION_TABLE]


def reachable(table: Table, start: str) -> set[str]:
    found = {start}
    while more := {after for (state, _), after in table.moves.items() if state in found} - found:
        found |= more
    return found


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.role)
def test_every_move_and_nothing_else(table: Table) -> None:
    events = {event for _, event in table.moves}
    for state, event in product(table.states, events):
        machine = Machine(table)
        machine.state = state
        if (state, event) in table.moves:
            machine.on(event)
            assert machine.state == table.moves[state, event]
        else:
            with pytest.raises(IllegalTransition):
                machine.on(event)
            assert machine.state == state


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.role)
def test_every_state_is_reached_and_can_end(table: Table) -> None:
    assert reachable(table, table.start) == set(table.states)
    for state in table.states:
        assert reachable(table, state) & {"migrated", "rolled-back"}


def test_the_source_runs_again_by_itself_only_before_the_hand_over() -> None:
    moves = SOURCE_TABLE.moves
    for state in SOURCE_TABLE.committed:
        assert (state, "fail") not in moves
    into = {event for (state, event), after in moves.items() if after == "rolling-back"}
    assert into == {"fail", "failed"}


def test_the_destination_runs_only_after_the_hand_over() -> None:
    before = dict(DESTINATION_TABLE.moves)
    del before["restored", "hand-over"]
    without = Table("destination", DESTINATION_TABLE.states, before, "idle", frozenset())
    assert "migrated" not in reachable(without, "idle")
