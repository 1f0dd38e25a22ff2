"""What is done for a dead agent in each state, and what becomes of its journal."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent import host_id, recovery
from agent.history import History
from agent.journal import Journal, JournalBusy, JournalDamaged, JournalError, read
from agent.protocol import DESTINATION, GONE, SETTLED, SOURCE, TABLES, Found, Log
from agent.recovery import RecoveryIncomplete, forget, settle, settle_when_free

ID = "20261124-120000-abcdef"
GO_ON = ["take_back_addresses", "unlock", "release", "thaw"]
END_HERE = ["end_copy", "give_addresses", "unlock"]
LEAVE_NOTHING = ["kill", "drop_addresses", "unlock"]


class Fake:
    """A successor that only says what it was told to do."""

    did: list[str]
    failing: set[str]
    living: ClassVar[list[int]] = [7]
    same_boot = True
    complete = False  # all of its memory has come

    def __init__(self, history: History) -> None: ...

    def do(self, action: str) -> None:
        if action in self.failing:
            raise OSError(f"no {action}")
        if not action.startswith("say_"):
            self.did.append(action)

    def wipe(self) -> None:
        self.did.append("wipe")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.did, Fake.failing = [], set()
    monkeypatch.setattr(recovery, "Successor", Fake)
    return Fake


def left(directory: Path, role: str, state: str) -> Path:
    journal = Journal.create(ID, role, directory)
    journal.record(state, Log.DECISION, {"plan": {}})
    journal.close()
    return journal.path


CASES: list[tuple[str, str, str | None, list[str], str, bool]] = [
    # role, found, word; done, state then, journal stays
    *[(SOURCE, state, None, [*GO_ON, "wipe"], "rolled-back", False)
      for state in ("ready", "linked", "locked", "frozen", "shipped", "rolling-back")],
    *[(SOURCE, state, None, [], state, True) for state in ("handed-over", "in-doubt")],
    *[(SOURCE, state, "committed", [*END_HERE, "wipe"], "migrated", False)
      for state in ("handed-over", "in-doubt")],
    *[(SOURCE, state, "failed", [*GO_ON, "wipe"], "rolled-back", False)
      for state in ("handed-over", "in-doubt")],
    (SOURCE, "handed-over", "nonsense", [], "handed-over", True),
    (SOURCE, "committed", None, [*END_HERE, "wipe"], "migrated", False),
    (SOURCE, "migrated", None, ["wipe"], "migrated", False),
    (SOURCE, "rolled-back", None, ["wipe"], "rolled-back", False),
    *[(DESTINATION, state, None, [*LEAVE_NOTHING, "wipe"], "rolled-back", False)
      for state in (
          "ready", "linked", "locked", "restoring", "restored", "taking-over", "undoing",
      )],
    (DESTINATION, "committed", None, ["unlock", "release", "thaw", "wipe"], "migrated", True),
    (DESTINATION, "migrated", None, ["wipe"], "migrated", True),
    (DESTINATION, "running", None, ["unlock", "release", "thaw"], "running", True),
    (DESTINATION, "running", "failed", ["unlock", "release", "thaw"], "running", True),
    (DESTINATION, "running", GONE, ["kill", "wipe"], "migrated", True),
    (DESTINATION, "starved", None, ["kill", "wipe"], "migrated", True),
]  # fmt: skip


@pytest.mark.parametrize(("role", "found", "word", "done", "state", "stays"), CASES)
def test_each_state(
    tmp_path: Path,
    role: str,
    found: str,
    word: str | None,
    done: list[str],
    state: str,
    stays: bool,
) -> None:
    path = left(tmp_path, role, found)
    settled = settle(ID, role, word, tmp_path)
    assert (settled.found, settled.state, Fake.did) == (found, state, done)
    assert path.exists() == stays
    if stays:
        assert read(path, ID, role).state == state


def test_every_state_is_a_case() -> None:
    tried = {(role, found) for role, found, *_ in CASES}
    every = {(role, state) for role, table in TABLES.items() for state in table.states}
    assert every - tried == {(SOURCE, "idle"), (DESTINATION, "idle"), (DESTINATION, "rolled-back")}


@pytest.mark.parametrize("state", ["committed", "migrated"])
def test_a_destination_that_has_it_says_so_until_it_may_forget(tmp_path: Path, state: str) -> None:
    path = left(tmp_path, DESTINATION, state)
    for _ in range(2):
        assert settle(ID, DESTINATION, None, tmp_path).word == "committed"
    assert forget(ID, tmp_path) and not path.exists()
    assert not forget(ID, tmp_path)


def test_a_source_whose_copy_is_gone_says_so_until_it_may_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "living", [])
    path = left(tmp_path, SOURCE, "frozen")
    for _ in range(2):
        settled = settle(ID, SOURCE, None, tmp_path)
        assert (settled.lost, settled.state, settled.living) == (True, "rolled-back", [])
    assert forget(ID, tmp_path) and not path.exists()


@pytest.mark.parametrize(
    ("found", "same_boot", "lost"),
    [("migrated", True, False), ("migrated", False, True), ("committed", True, True)],
)
def test_a_copy_that_ended_before_all_was_over_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, same_boot: bool, lost: bool
) -> None:
    """Not one that went on, and ended by itself or moved on."""
    monkeypatch.setattr(Fake, "living", [])
    monkeypatch.setattr(Fake, "same_boot", same_boot)
    left(tmp_path, DESTINATION, found)
    for _ in range(2):  # the first to ask may not live to tell
        assert settle(ID, DESTINATION, None, tmp_path).lost == lost


def test_one_that_runs_is_let_go_once(tmp_path: Path) -> None:
    left(tmp_path, DESTINATION, "running")
    for _ in range(2):
        settled = settle(ID, DESTINATION, None, tmp_path)
        assert (settled.state, settled.word, settled.living) == ("running", None, [7])
    assert Fake.did == ["unlock", "release", "thaw"]


@pytest.mark.parametrize(("changed", "lost"), [({"living": []}, True), ({"complete": True}, False)])
def test_one_that_needs_no_more_memory_has_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], lost: bool
) -> None:
    """Whatever is said of the source's copy."""
    for name, value in changed.items():
        monkeypatch.setattr(Fake, name, value)
    left(tmp_path, DESTINATION, "running")
    settled = settle(ID, DESTINATION, GONE, tmp_path)
    assert (settled.state, settled.word, settled.lost) == ("migrated", "committed", lost)
    assert "kill" not in Fake.did


def test_it_says_whose_word_it_is(tmp_path: Path) -> None:
    assert settle(ID, DESTINATION, None, tmp_path).host_id == ""
    here = host_id.ensure(tmp_path)
    assert settle(ID, DESTINATION, None, tmp_path).host_id == here
    left(tmp_path, DESTINATION, "restored")
    assert settle(ID, DESTINATION, None, tmp_path).host_id == here


@pytest.mark.parametrize(("role", "found"), [(SOURCE, "committed"), (DESTINATION, "restored")])
def test_a_journal_that_cannot_be_removed_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, found: str
) -> None:
    """Later it would ask again, of a host that was told to forget."""
    left(tmp_path, role, found)
    with monkeypatch.context() as patch, pytest.raises(JournalError, match="Read-only"):
        patch.setattr(Path, "unlink", read_only)
        settle(ID, role, None, tmp_path)
    settle(ID, role, None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_forgotten_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path, DESTINATION, "migrated")
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(JournalError):
        forget(ID, tmp_path)


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_nothing_is_forgotten_before_it_is_over(tmp_path: Path) -> None:
    path = left(tmp_path, DESTINATION, "committed")
    assert not forget(ID, tmp_path) and path.exists()


def test_of_what_it_knows_nothing_a_destination_says_it_failed(tmp_path: Path) -> None:
    assert settle(ID, DESTINATION, None, tmp_path).word == "failed"
    assert settle(ID, SOURCE, None, tmp_path).state == ""


def test_an_agent_that_died_before_its_first_line_has_done_nothing(tmp_path: Path) -> None:
    path = Journal.create(ID, SOURCE, tmp_path)
    path.close()
    assert settle(ID, SOURCE, None, tmp_path).state == "", "it says so as one without a journal"
    assert not path.path.exists() and Fake.did == []


@pytest.mark.parametrize("data", [b"", bytes(16384), b"SFJ1" + b"\0\0\1\0halfofafirstrecord"])
@pytest.mark.parametrize("word", [None, "gone"])
def test_a_destinations_without_a_line_says_nothing_to_a_source_that_asks(
    tmp_path: Path, data: bytes, word: str | None
) -> None:
    """It may have had the commit: "failed" would make a second copy run."""
    journal = Journal.create(ID, DESTINATION, tmp_path)
    journal.close()
    journal.path.write_bytes(data)
    for _ in range(2):  # and stays, for who asks later
        with pytest.raises(JournalDamaged, match="no line of it"):
            settle(ID, DESTINATION, word, tmp_path)
    assert not forget(ID, tmp_path)
    assert journal.path.read_bytes() == data
    assert settle(ID, DESTINATION, SETTLED, tmp_path).word == "failed", "the source asks nothing"
    assert not journal.path.exists()


@pytest.mark.parametrize(
    ("role", "found", "failing", "done"),
    [
        (SOURCE, "committed", "end_copy", ["give_addresses"]),
        (DESTINATION, "restored", "kill", ["drop_addresses"]),
    ],
)
def test_a_copy_that_could_not_be_ended_stays_locked(
    tmp_path: Path, role: str, found: str, failing: str, done: list[str]
) -> None:
    left(tmp_path, role, found)
    Fake.failing = {failing}
    with pytest.raises(RecoveryIncomplete, match=failing):
        settle(ID, role, None, tmp_path)
    assert Fake.did == done


@pytest.mark.parametrize("failing", ["unlock", "thaw", "take_back_addresses"])
def test_a_step_that_fails_keeps_none_from_being_taken_and_all_are_taken_again(
    tmp_path: Path, failing: str
) -> None:
    path = left(tmp_path, SOURCE, "frozen")
    Fake.failing = {failing}
    with pytest.raises(RecoveryIncomplete, match=failing):
        settle(ID, SOURCE, None, tmp_path)
    assert Fake.did == [one for one in GO_ON if one != failing]
    assert read(path, ID, SOURCE).state == "rolling-back"
    Fake.did, Fake.failing = [], set()
    assert settle(ID, SOURCE, None, tmp_path).state == "rolled-back"
    assert Fake.did == [*GO_ON, "wipe"]


def test_a_full_disk_does_not_keep_it_from_undoing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left(tmp_path, SOURCE, "frozen")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert settle(ID, SOURCE, None, tmp_path).state == "rolled-back"
    assert Fake.did == [*GO_ON, "wipe"] and not path.exists()


def test_while_its_agent_lives_nobody_acts_for_it(tmp_path: Path) -> None:
    journal = Journal.create(ID, SOURCE, tmp_path)
    journal.record("frozen", Log.NOTE, {"plan": {}})
    with pytest.raises(JournalBusy):
        settle_when_free(ID, SOURCE, None, 0.1, tmp_path)
    assert Fake.did == []
    journal.close()
    assert settle_when_free(ID, SOURCE, None, 0.1, tmp_path).state == "rolled-back"


def test_every_rule_of_the_tables_is_known_here() -> None:
    assert {state.found for table in TABLES.values() for state in table.states.values()} == set(
        Found
    )
