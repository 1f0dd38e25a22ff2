"""One process, one migration: whom a journal that is not over keeps from beginning."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import EXIT_REFUSED
from agent.journal import Journal, JournalError
from agent.kernel import proc
from agent.plan import Address, Plan
from agent.probe import target, tree
from agent.protocol import DESTINATION, SOURCE, Log
from agent.successor import Successor
from agent.unended import (
    AlreadyMoving,
    Unfinished,
    refuse_beside_leftovers,
    refuse_looking,
    refuse_twice,
)

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
        refuse_twice([PID], tmp_path)
    journal.close()
    with pytest.raises(Unfinished):
        refuse_twice([PID], tmp_path)
    refuse_twice([os.getppid()], tmp_path)


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
    refuse_twice([PID], tmp_path)


# --- at the destination


def begun(directory: Path, state: str, tree: tuple[int, ...], **facts: object) -> Journal:
    """A destination's journal of an earlier migration, and of the same service address."""
    plan = Plan(ID, tree[0], tree, (ADDRESS,), (), 0, False).to_wire()
    return left(directory, DESTINATION, state, plan=plan, **facts)


def test_what_a_leftover_would_kill_is_what_comes_with_its_pids_next(tmp_path: Path) -> None:
    journal = begun(tmp_path, "restoring", (PID,))
    assert Successor(journal.history).living == [PID], "it knows no births"
    with pytest.raises(AlreadyMoving):
        refuse_beside_leftovers(NEXT, tmp_path)
    journal.close()
    with pytest.raises(Unfinished) as refused:
        refuse_beside_leftovers(NEXT, tmp_path)
    assert ID in refused.value.message
    assert refused.value.fields["pid"] == PID


def test_a_leftover_that_would_drop_the_address_refuses_it(tmp_path: Path) -> None:
    begun(tmp_path, "taking-over", (PID + 1,), boot="another").close()
    with pytest.raises(Unfinished):
        refuse_beside_leftovers(NEXT, tmp_path)


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
    refuse_beside_leftovers(NEXT, tmp_path)


# --- the check


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def in_doubt(directory: Path, role: str, pid: int, state: str) -> Journal:
    births = {"born": proc.born(pid)} if role == SOURCE else {"ticks": proc.born(pid)}
    return left(directory, role, state, plan={"pid": pid, "tree": [pid]}, **births)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_check_of_a_frozen_copy_says_nothing_but_that_its_migration_has_to_end(
    tmp_path: Path, child: int, stopped: bool
) -> None:
    """Not that it is stopped, and could be continued: another copy runs elsewhere."""
    journal = in_doubt(tmp_path, SOURCE, child, "in-doubt")
    if stopped:
        os.kill(child, signal.SIGSTOP)
    with pytest.raises(Unfinished) as refused:
        tree.look(child, tmp_path)
    assert refused.value.exit_status == EXIT_REFUSED
    assert f"migrate recover {ID}" in refused.value.hint
    journal.close()
    for pid in (child, os.getppid()):  # of a tree that has it, too
        with pytest.raises(Unfinished):
            tree.look(pid, tmp_path)


@pytest.mark.parametrize(
    ("role", "state"),
    [(SOURCE, "handed-over"), (DESTINATION, "committed"), (DESTINATION, "running")],
)
def test_a_copy_that_has_the_pids_is_not_called_one_to_be_ended(
    tmp_path: Path, child: int, role: str, state: str
) -> None:
    facts = tree.look(child, tmp_path)
    assert target.look(facts, tmp_path)["taken"]
    in_doubt(tmp_path, role, child, state).close()
    with pytest.raises(Unfinished):
        target.look(facts, tmp_path)


def test_one_who_may_not_read_the_journals_is_told_what_is_lacking(
    tmp_path: Path, child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("agent.journal.os.listdir", refused)
    refuse_looking([child], tmp_path)
    with pytest.raises(JournalError):
        refuse_twice([child], tmp_path)
