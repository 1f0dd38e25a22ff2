"""The journal: what is written is found again, and a torn end is as if it had not been written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from agent import journal as module
from agent.errors import ProtocolError
from agent.history import MAGIC
from agent.journal import (
    Journal,
    JournalBusy,
    JournalDamaged,
    JournalError,
    checked_name,
    histories,
    look,
    read,
)
from agent.kernel import proc
from agent.plan import new_id
from agent.protocol import DESTINATION, SOURCE, Log
from tests.support.lab import until

ID = "20261124-120000-abcdef"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(ID, SOURCE, tmp_path / "journal")


def test_what_was_written_is_read(journal: Journal) -> None:
    journal.record("ready", Log.DECISION, {"plan": {"pid": 7}, "born": 5})
    journal.record("locked", Log.NOTE, {})
    journal.note(stopped=[8], born=6)
    history = read(journal.path, ID, SOURCE)
    assert [entry.state for entry in history.entries] == ["ready", "locked", ""]
    assert (history.state, history.facts) == (
        "locked", {"plan": {"pid": 7}, "born": 6, "stopped": [8]},
    )  # fmt: skip
    assert history.entered("ready") is not None and history.entered("frozen") is None
    summary = history.summary()
    assert (summary["pid"], summary["state"], summary["source"]) == (7, "locked", "")


def test_nobody_else_may_look(journal: Journal) -> None:
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_a_decision_is_on_disk_and_a_note_need_not_be(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal.record("locked", Log.NOTE, {})
    assert not synced
    journal.record("handed-over", Log.DECISION, {})
    assert len(synced) == 1


def test_every_torn_end_is_as_if_it_had_not_been_written(journal: Journal) -> None:
    journal.record("ready", Log.DECISION, {"a": 1})
    whole = journal._end
    journal.record("handed-over", Log.DECISION, {"b": 2})
    data = journal.path.read_bytes()
    journal.close()
    for end in range(whole, journal._end):
        journal.path.write_bytes(data[:end])
        assert read(journal.path, ID, SOURCE).state == "ready", end
        journal.path.write_bytes(data[:end].ljust(len(data), b"\0"))
        assert read(journal.path, ID, SOURCE).state == "ready", end
    for place in range(whole, journal._end):
        torn = bytearray(data)
        torn[place] ^= 1
        journal.path.write_bytes(torn)
        assert read(journal.path, ID, SOURCE).state == "ready", place


def test_one_that_comes_after_writes_over_the_torn_end(journal: Journal) -> None:
    journal.record("ready", Log.DECISION, {})
    end = journal._end
    journal.record("handed-over", Log.DECISION, {"much": "x" * 500})
    journal.close()
    os.truncate(journal.path, end + 100)
    again = Journal.open(ID, SOURCE, journal.path.parent)
    assert again is not None and again.history.state == "ready"
    again.record("rolling-back", Log.NOTE, {})
    assert read(journal.path, ID, SOURCE).state == "rolling-back"


@pytest.mark.parametrize("end", range(5))
def test_one_that_never_got_its_first_record(tmp_path: Path, end: int) -> None:
    (tmp_path / f"{ID}-source").write_bytes(b"SFJ1"[:end])
    assert read(tmp_path / f"{ID}-source", ID, SOURCE).state == "idle"


def test_one_that_was_written_and_tells_nothing_is_not_taken_for_empty(journal: Journal) -> None:
    journal.record("ready", Log.DECISION, {"a": 1})
    end = journal._end
    journal.record("locked", Log.NOTE, {})
    journal.close()
    data = bytearray(journal.path.read_bytes())
    for place, value in ((3, ord("2")), (0, ord("X")), (end - 1, data[end - 1] ^ 1)):
        spoilt = bytearray(data)
        spoilt[place] = value
        journal.path.write_bytes(spoilt)
        with pytest.raises(JournalDamaged):
            Journal.open(ID, SOURCE, journal.path.parent)
        assert journal.path.read_bytes() == spoilt
    torn = data[: end - 5].ljust(len(data), b"\0")  # never got whole: nothing was done yet
    for empty in (torn, bytes(len(data)), b"", b"SF".ljust(9, b"\0")):
        journal.path.write_bytes(empty)
        again = Journal.open(ID, SOURCE, journal.path.parent)
        assert again is not None and not again.history.entries
        again.close()


@pytest.mark.parametrize("place", [0, 3, 8, 12, -1])
def test_damage_before_a_decision_is_no_torn_end(journal: Journal, place: int) -> None:
    """Nothing is erased: the decision has been acted upon."""
    journal.record("ready", Log.DECISION, {})
    begin = journal._end
    journal.record("restoring", Log.NOTE, {"births": [[5, 7]]})
    end = journal._end
    journal.record("committed", Log.DECISION, {})
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[begin + place if place >= 0 else end + place] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        Journal.open(ID, SOURCE, journal.path.parent)
    assert journal.path.read_bytes() == data


def test_nothing_is_written_where_nobody_would_read_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 400)
    journal.record("ready", Log.DECISION, {})
    with pytest.raises(JournalError, match="too large"):
        journal.record("committed", Log.DECISION, {"much": "x" * 400})
    assert read(journal.path, ID, SOURCE).state == "ready"


def test_it_is_one_agents_alone(journal: Journal) -> None:
    with pytest.raises(JournalBusy):
        Journal.open(ID, SOURCE, journal.path.parent)
    with subprocess.Popen(["sleep", "1000"]) as agent:  # who may be at it, or stand still
        journal.note(agent=agent.pid, agent_born=proc.born(agent.pid))
        with pytest.raises(JournalBusy, match=f"its agent, PID {agent.pid}, lives"):
            Journal.open(ID, SOURCE, journal.path.parent)
        agent.send_signal(signal.SIGSTOP)
        until(lambda: proc.stat(agent.pid).state == "T", 5, "it is stopped")
        with pytest.raises(JournalBusy, match=f"PID {agent.pid}, is stopped .state T."):
            Journal.open(ID, SOURCE, journal.path.parent)
        agent.kill()
    with pytest.raises(JournalBusy, match="somebody is at work"):
        Journal.open(ID, SOURCE, journal.path.parent)
    journal.close()
    again = Journal.open(ID, SOURCE, journal.path.parent)
    assert again is not None
    again.remove()
    assert Journal.open(ID, SOURCE, journal.path.parent) is None


def test_an_id_is_used_once(journal: Journal) -> None:
    with pytest.raises(JournalError):
        Journal.create(ID, SOURCE, journal.path.parent)
    Journal.create(ID, DESTINATION, journal.path.parent).close()


def test_all_there_are(journal: Journal) -> None:
    other = new_id()
    Journal.create(other, DESTINATION, journal.path.parent).record("ready", Log.NOTE, {})
    (journal.path.parent / "something-else").write_text("")
    found = [(one.id, one.role, one.state) for one in histories(journal.path.parent)]
    assert sorted(found) == sorted([(ID, SOURCE, "idle"), (other, DESTINATION, "ready")])
    assert list(histories(journal.path.parent / "none")) == []


def test_what_cannot_be_gone_by_is_named_beside_the_others(
    journal: Journal, tmp_path: Path
) -> None:
    directory = journal.path.parent
    journal.record("ready", Log.NOTE, {})
    paths = {name: directory / f"{new_id()}-{SOURCE}" for name in ("open", "link", "odd", "fifo")}
    paths["open"].write_bytes(MAGIC)
    paths["open"].chmod(0o666)
    paths["link"].symlink_to(journal.path)
    os.mkfifo(paths["fifo"], 0o600)
    paths["odd"].write_bytes(b"something else")
    paths["odd"].chmod(0o600)
    found, damaged = look(directory)
    assert [one.id for one in found] == [ID]
    assert {one.fields["path"]: one.code for one in damaged} == {
        str(path): "journal-damaged" if name == "odd" else "journal-exposed"
        for name, path in paths.items()
    }
    with pytest.raises(JournalError):
        histories(directory)


def test_a_full_disk_is_an_error_and_leaves_the_last_state(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.record("ready", Log.DECISION, {})
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)
    with pytest.raises(JournalError, match="No space"):
        journal.record("handed-over", Log.DECISION, {})
    monkeypatch.undo()
    assert read(journal.path, ID, SOURCE).state == "ready"
    assert journal.history.state == "ready"


def test_a_decision_that_could_not_be_synced_was_never_made(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a guardian would find it in the page cache, and act upon what its agent has undone."""

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal.record("ready", Log.DECISION, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(JournalError, match="Input/output error"):
            journal.record("committed", Log.DECISION, {})
    assert read(journal.path, ID, SOURCE).state == journal.history.state == "ready"
    journal.record("rolled-back", Log.DECISION, {})
    assert read(journal.path, ID, SOURCE).state == "rolled-back"


def test_whole_records_behind_a_torn_one_are_none(journal: Journal) -> None:
    """A crash may have kept a later page of the file, and not the one before it."""
    journal.record("ready", Log.DECISION, {})
    torn = journal._end
    for state in ("frozen", "locked"):  # of the same length
        journal.record(state, Log.NOTE, {})
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[torn] ^= 1
    journal.path.write_bytes(data)
    again = Journal.open(ID, SOURCE, journal.path.parent)
    assert again is not None and again.history.state == "ready"
    again.record("linked", Log.NOTE, {})
    assert read(journal.path, ID, SOURCE).state == "linked"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", ID + "/..", None, 5])
def test_only_ids_name_journals(name: object) -> None:
    with pytest.raises(ProtocolError):
        checked_name(name, SOURCE)
    with pytest.raises(ProtocolError):
        checked_name(ID, "nobody")
    checked_name(ID, SOURCE)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / f"{ID}-source").symlink_to(tmp_path / "target")
    with pytest.raises(JournalError):
        Journal.open(ID, SOURCE, tmp_path)
    assert module.DIRECTORY == Path("/var/lib/streamferry/journal")
