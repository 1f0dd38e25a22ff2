"""One process, one migration: whom a journal that is not over keeps from beginning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.custody import AlreadyMoving, Unfinished, _refuse_beside_leftovers, _refuse_twice
from agent.journal import Journal
from agent.kernel import proc
from agent.plan import Address, Plan
from agent.protocol import DESTINATION, SOURCE, Log
from agent.successor import Successor

ID = "20261124-120000-abcdef"
PID = os.getpid()
ADDRESS = Address("192.0.2.7", 24, 4, "eth0", "eth0")
NEXT = Plan("20261124-130000-fedcba", PID, (PID,), (ADDRESS,), (), 0, False)


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


# --- at the destination


def begun(directory: Path, state: str, tree: tuple[int, ...], **facts: object) -> Journal:
    """A destination's journal of an earlier migration, and of the same service address."""
    plan = Plan(ID, tree[0], tree, (ADDRESS,), (), 0, False).to_wire()
    return left(directory, DESTINATION, state, plan=plan, **facts)


def test_what_a_leftover_would_kill_is_what_comes_with_its_pids_next(tmp_path: Path) -> None:
    journal = begun(tmp_path, "restoring", (PID,))
    assert Successor(journal.history).living == [PID], "it knows no births"
    with pytest.raises(AlreadyMoving):
        _refuse_beside_leftovers(NEXT, tmp_path)
    journal.close()
    with pytest.raises(Unfinished) as refused:
        _refuse_beside_leftovers(NEXT, tmp_path)
    assert ID in refused.value.message
    assert refused.value.fields["pid"] == PID


def test_a_leftover_that_would_drop_the_address_refuses_it(tmp_path: Path) -> None:
    begun(tmp_path, "taking-over", (PID + 1,), boot="another").close()
    with pytest.raises(Unfinished):
        _refuse_beside_leftovers(NEXT, tmp_path)


@pytest.mark.parametrize(
    ("state", "tree", "boot"),
    [
        ("locked", (PID,), ""),
        ("restoring", (PID + 1,), ""),
        ("restoring", (PID,), "another"),
        ("rolled-back", (PID,), ""),
        ("migrated", (PID,), ""),
    ],
)
def test_one_whose_end_would_reach_nothing_of_it_refuses_none(
    tmp_path: Path, state: str, tree: tuple[int, ...], boot: str
) -> None:
    begun(tmp_path, state, tree, boot=boot).close()
    _refuse_beside_leftovers(NEXT, tmp_path)
