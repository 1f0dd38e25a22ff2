"""What a destination still undoes when a step of its undoing fails."""

from __future__ import annotations

from typing import Any

import pytest

from agent.destination_host import DestinationHost
from agent.protocol import DESTINATION_TABLE, SOURCE_TABLE, may_follow

UNDO = DESTINATION_TABLE.moves["restored", "fail"].do


class Host:
    """Only the steps of the undoing, of which one fails."""

    def __init__(self, failing: str) -> None:
        self.did: list[str] = []
        self.failing = failing

    async def kill(self) -> None:
        self._do("kill")

    def drop_addresses(self) -> None:
        self._do("drop_addresses")

    def unlock(self) -> None:
        self._do("unlock")

    def _do(self, action: str) -> None:
        if action == self.failing:
            raise OSError(action)
        self.did.append(action)


@pytest.mark.parametrize(
    ("failing", "done"),
    [
        ("kill", ["drop_addresses"]),  # its sockets may still be there, and would answer
        ("drop_addresses", ["kill", "unlock"]),
        ("unlock", ["kill", "drop_addresses"]),
    ],
)
async def test_the_lock_stays_where_the_copy_does(failing: str, done: list[str]) -> None:
    host: Any = Host(failing)
    with pytest.raises(OSError, match=failing):
        await DestinationHost.undo(host, UNDO)
    assert host.did == done


def test_every_move_that_ends_a_copy_does_so_before_it_unlocks() -> None:
    ending = [
        move.do
        for table in (SOURCE_TABLE, DESTINATION_TABLE)
        for move in table.moves.values()
        if "unlock" in move.do and not all(may_follow("unlock", [action]) for action in move.do)
    ]
    assert ending
    for actions in ending:
        ends = next(one for one in actions if not may_follow("unlock", [one]))
        assert actions.index(ends) < actions.index("unlock")
