"""Journals read without their locks: which are fit to be gone by."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgpack
import pytest

from agent.history import HEAD
from agent.journal import Journal
from agent.leftovers import journals
from agent.leftovers.seen import SeenJournal
from agent.protocol import DESTINATION, SOURCE, TABLES, Log
from tests.support.leftovers import ID, append, journal


def look(directory: Path) -> SeenJournal:
    (one,) = journals.look(directory)
    return one


def record(state: str) -> bytes:
    body = msgpack.packb({"state": state, "at": 1.0, "facts": {}})
    return HEAD.pack(len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize("role", TABLES)
def test_one_that_is_whole(tmp_path: Path, role: str) -> None:
    made = journal(tmp_path, role, "committed", pid=os.getpid())
    assert look(tmp_path).busy, "its lock is held"
    made.close()
    one = look(tmp_path)
    assert (one.busy, one.problem, one.state, one.id, one.role) == (
        False,
        "",
        "committed",
        ID,
        role,
    )
    assert one.plan is not None and one.plan.pid == os.getpid()
    assert os.getpid() in one.living and one.agent[0] == os.getpid()


def test_one_that_others_may_have_written(tmp_path: Path) -> None:
    made = journal(tmp_path, SOURCE, "in-doubt", pid=os.getpid())
    made.close()
    made.path.chmod(0o666)
    one = look(tmp_path)
    assert (one.problem, one.state, one.busy) == ("exposed", "in-doubt", False)
    assert one.plan is not None and os.getpid() in one.living
    made.path.rename(tmp_path / "elsewhere")
    made.path.symlink_to(tmp_path / "elsewhere")
    assert look(tmp_path).problem == "unreadable"


def test_looking_leaves_it_to_be_locked(tmp_path: Path) -> None:
    journal(tmp_path, SOURCE, "frozen").close()
    look(tmp_path)
    opened = Journal.open(ID, SOURCE, tmp_path)
    assert opened is not None
    opened.close()


def test_none(tmp_path: Path) -> None:
    assert journals.look(tmp_path / "none") == []
    (tmp_path / "other").write_text("not a journal")
    assert journals.look(tmp_path) == []


def test_before_its_first_line(tmp_path: Path) -> None:
    made = Journal.create(ID, SOURCE, tmp_path)
    made.close()
    assert look(tmp_path).problem == "empty"
    for data in (b"", bytes(100), b"SFJ1" + record("ready")[:-1] + bytes(50)):
        made.path.write_bytes(data)
        assert look(tmp_path).problem == "empty", data


def test_a_torn_end_is_none(tmp_path: Path) -> None:
    made = journal(tmp_path, SOURCE, "frozen")
    made.close()
    append(made.path, record("handed-over")[:-3])
    assert (look(tmp_path).problem, look(tmp_path).state) == ("", "frozen")


def test_something_behind_a_record_that_is_not_whole(tmp_path: Path) -> None:
    made = journal(tmp_path, SOURCE, "frozen")
    made.close()
    spoilt = bytearray(record("shipped"))
    spoilt[-1] ^= 1
    append(made.path, bytes(spoilt) + record("handed-over"))
    assert look(tmp_path).problem == "damaged"
    first = bytearray(b"SFJ1" + record("ready") + record("handed-over"))
    first[20] ^= 1
    made.path.write_bytes(first)
    assert look(tmp_path).problem == "damaged"


@pytest.mark.parametrize(
    "data", [b"SFJ2" + record("ready"), b"SFJ1" + record("teleported"),
             b"SFJ1" + HEAD.pack(1, zlib.crc32(b"\1")) + b"\1", b"SFJ1" + record("ready")],
)  # fmt: skip
def test_of_a_newer_format(tmp_path: Path, data: bytes) -> None:
    """The last has no plan that this version could read."""
    (tmp_path / f"{ID}-{SOURCE}").write_bytes(data)
    assert look(tmp_path).problem == "newer"


def test_states_of_the_other_role_are_none_of_this(tmp_path: Path) -> None:
    made = journal(tmp_path, SOURCE, "frozen")
    made.record("taking-over", Log.NOTE, {})
    made.close()
    assert look(tmp_path).problem == "newer"


def test_no_journal_at_all(tmp_path: Path) -> None:
    (tmp_path / f"{ID}-{DESTINATION}").write_bytes(b"something else")
    assert look(tmp_path).problem == "damaged"
    (tmp_path / f"{ID}-{DESTINATION}").unlink()
    (tmp_path / f"{ID}-{DESTINATION}").symlink_to("/etc/passwd")
    assert look(tmp_path).problem == "unreadable"
