"""One process, one migration: whom a journal that is not over keeps from beginning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.custody import AlreadyMoving, Unfinished, _refuse_twice
from agent.journal import Journal
from agent.kernel import proc
from agent.protocol import DESTINATION, SOURCE, Log

ID = "20261124-120000-abcdef"
PID = os.getpid()


def left(directory: Path, role: str, state: str, boot: str = "", **facts: object) -> Journal:
    journal = Journal.create(ID, role, directory)
    plan = {"pid": PID, "tree": [PID]}
    born = {"born": proc.born(PID)} if role == SOURCE else {"ticks": proc.born(PID)}
    known = {"plan": plan, "boot": boot or proc.boot_id(), **born, **facts}
    journal.record(state, Log.DECISION, known)
    return journal


@pytest.mark.parametrize(("role", "state"), [(SOURCE, "frozen"), (DESTINATION, "committed")])
def test_a_process_with_something_left_to_do_is_refused(
    tmp_path: Path, role: str, state: str
) -> None:
    """A destination's too: to finish it thaws the process, which may be frozen to move on."""
    journal = left(tmp_path, role, state)
    with pytest.raises(AlreadyMoving):
        _refuse_twice(PID, tmp_path)
    journal.close()
    with pytest.raises(Unfinished):
        _refuse_twice(PID, tmp_path)
    _refuse_twice(os.getppid(), tmp_path)


@pytest.mark.parametrize(
    ("role", "state", "facts"),
    [
        (SOURCE, "rolled-back", {}),
        (DESTINATION, "migrated", {}),
        (SOURCE, "frozen", {"boot": "another"}),
        (DESTINATION, "committed", {"boot": "another"}),
        (SOURCE, "frozen", {"born": 1}),
        (DESTINATION, "committed", {"ticks": proc.born(PID) + 1}),
        (DESTINATION, "locked", {"ticks": 0}),
    ],
)
def test_what_is_over_or_about_another_process_refuses_none(
    tmp_path: Path, role: str, state: str, facts: dict[str, object]
) -> None:
    left(tmp_path, role, state, **facts).close()  # type: ignore[arg-type]
    _refuse_twice(PID, tmp_path)
