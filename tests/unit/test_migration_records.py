"""What was begun here, kept in files: whole, checked when read, and named where it cannot be."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import records as module
from orchestrator.__main__ import run
from orchestrator.migration import result as results
from orchestrator.records import RecordDamaged, Records, is_open
from orchestrator.recovery import Named
from tests.support.records import DAMAGED, ID, OTHER, full, whole


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "streamferry" / "migrations"


@pytest.fixture
def records(directory: Path) -> Records:
    """One migration that has ended, and room for a bad one."""
    made = Records()
    made.begin(Named(OTHER, "src", "dst", 5000), None)
    made.end(OTHER, full(OTHER))
    return made


Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    def command(*arguments: str) -> tuple[int, str, str]:
        status = run(list(arguments))
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


def answer(says: Says, *arguments: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = says(*arguments, "--json")
    assert out.count("\n") == 1
    return status, dict(json.loads(out))


# --- whole ones


def test_a_migration_from_its_beginning_to_its_end(records: Records) -> None:
    records.begin(Named(ID, "root@src:22", "[::1]:22", 5000), None)
    begun = records.get(ID)
    assert begun is not None and begun["result"] is None and is_open(begun)
    assert (begun["source"], begun["destination"], begun["pid"]) == (
        "root@src:22",
        "[::1]:22",
        5000,
    )
    records.end(ID, full(ID))
    ended = records.get(ID)
    assert ended is not None and ended["result"] == {**full(ID), "recovered": False}
    assert not is_open(ended)
    assert [one["id"] for one in records.all()] == [OTHER, ID]


def test_the_ssh_configuration_is_found_from_anywhere(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, kept in (("a/b", str(tmp_path / "a/b")), ("none", "none"), (None, None)):
        records.begin(Named(ID, "src", "dst", 5000), given)
        begun = records.get(ID)
        assert begun is not None and begun["ssh_config"] == kept


def test_one_that_only_a_recovery_has_ended(records: Records, says: Says) -> None:
    records.begin(Named(ID, "src", "dst", 5000), None)
    records.end(ID, {"id": ID, "error": None, "outcome": "migrated", "recovered": True})
    assert answer(says, "list")[1]["migrations"][1]["outcome"] == "migrated"
    status, out, err = says("show", ID)
    assert (status, err) == (0, "") and "Blackout" not in out and "`migrate recover`" in out


def test_what_is_in_doubt_is_still_to_be_recovered(records: Records) -> None:
    records.begin(Named(ID, "src", "dst", 5000), None)
    records.end(ID, full(ID, outcome="in-doubt"))
    assert [one["id"] for one in records.all() if is_open(one)] == [ID]


def test_the_outcomes_of_a_recovery_can_be_kept(records: Records) -> None:
    records.begin(Named(ID, "src", "dst", 5000), None)
    for outcome in (results.MIGRATED, results.ROLLED_BACK, results.IN_DOUBT, results.OVER):
        records.end(ID, full(ID, outcome=outcome, recovered=True))
        found = records.get(ID)
        assert found is not None and found["result"] is not None
        assert found["result"]["outcome"] == outcome


def test_what_a_later_version_adds_is_passed_over(records: Records, directory: Path) -> None:
    (directory / f"{ID}.json").write_text(json.dumps(whole(more=[1], result=full(ID, more={}))))
    found = records.get(ID)
    assert found is not None and found["result"] is not None
    assert "more" not in found and "more" not in found["result"]


def test_one_of_them_as_json(records: Records, says: Says) -> None:
    status, told = answer(says, "show", OTHER)
    assert (status, told["error"]) == (0, None)
    assert told["result"] == {**full(OTHER), "recovered": False}


def test_nothing_was_begun_here(directory: Path, says: Says) -> None:
    assert says("list") == (0, "No migration was begun here.\n", "")
    assert says("recover") == (0, "Nothing to recover.\n", "")
    assert answer(says, "list") == (0, {"migrations": [], "damaged": [], "error": None})
    assert answer(says, "recover") == (0, {"migrations": [], "damaged": [], "error": None})


def test_files_of_other_names_are_none_of_ours(records: Records, directory: Path) -> None:
    for name in ("notes.json", f"{ID}.1234", f"{ID}.json.bak", ".json"):
        (directory / name).write_text("garbage")
    found, damaged = records.look()
    assert [one["id"] for one in found] == [OTHER] and damaged == []


def test_what_a_record_says_does_not_drive_the_terminal(
    records: Records, directory: Path, says: Says
) -> None:
    stream = {**full(ID)["streams"][0], "local": "\x1b[2J"}
    bad = whole(begun="\x1b[2J", source="\x1b[2J@src", result=full(ID, streams=[stream]))
    (directory / f"{ID}.json").write_text(json.dumps(bad))
    for command in (["list"], ["show", ID]):
        status, out, err = says(*command)
        assert status == 0 and "[2J" in out and "\x1b" not in out + err


# --- on disk


class Disk:
    """What was done to it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.broken = False
        syncs, replaces = os.fsync, os.replace

        def sync(fd: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            self.did.append(f"sync {path.name if path.is_dir() else 'a file'}")
            if self.broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            syncs(fd)

        def replace(old: Any, new: Any) -> None:
            self.did.append(f"name it {Path(new).name}")
            replaces(old, new)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", replace)


@pytest.fixture
def disk(records: Records, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_what_was_written_is_on_disk(records: Records, disk: Disk) -> None:
    written = ["sync a file", f"name it {ID}.json", "sync migrations"]
    records.begin(Named(ID, "src", "dst", 5000), None)
    assert disk.did == written
    records.end(ID, full(ID))
    assert disk.did == written * 2


def test_a_directory_that_was_made_is_on_disk(tmp_path: Path, monkeypatch: Any) -> None:
    disk = Disk(monkeypatch)
    Records(tmp_path / "state" / "streamferry" / "migrations").begin(
        Named(ID, "src", "dst", 1), None
    )
    assert disk.did[:3] == ["sync streamferry", "sync state", f"sync {tmp_path.name}"]


def test_what_does_not_come_on_disk_leaves_all_as_it_was(
    records: Records, directory: Path, disk: Disk
) -> None:
    records.begin(Named(ID, "src", "dst", 5000), None)
    before = sorted((one.name, one.read_bytes()) for one in directory.iterdir())
    disk.broken = True
    with pytest.raises(OSError, match="Input/output"):
        records.end(ID, full(ID))
    assert before == sorted((one.name, one.read_bytes()) for one in directory.iterdir())


def test_what_the_killed_have_left_does_not_pile_up(records: Records, directory: Path) -> None:
    old, fresh = directory / f"{ID}.4711", directory / f"{OTHER}.a_b8c9d0"
    kept = directory / "notes.4711"
    for path in (old, fresh, kept):
        path.write_text('{"id"')
    for path in (old, kept, directory / f"{OTHER}.json"):
        os.utime(path, (0, 0))
    records.begin(Named(ID, "src", "dst", 5000), None)
    names = {one.name for one in directory.iterdir()}
    assert names == {f"{ID}.json", f"{OTHER}.json", fresh.name, kept.name}


# --- damaged ones


def put(directory: Path, content: bytes) -> Path:
    path = directory / f"{ID}.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "why"), DAMAGED)
def test_a_damaged_one_is_named_and_the_others_are_shown(
    records: Records, directory: Path, says: Says, content: bytes, why: str
) -> None:
    path = put(directory, content)
    status, out, err = says("list")
    assert status == 3 and OTHER in out and ID not in out
    error, hint = err.splitlines()
    assert error.startswith(f"error: the record {path} cannot be gone by: ") and why in error
    assert hint.startswith("hint: ") and "migrate recover HOST" in hint

    status, told = answer(says, "list")
    assert status == 3 and [one["id"] for one in told["migrations"]] == [OTHER]
    (damaged,) = told["damaged"]
    assert damaged["path"] == str(path) and why in damaged["message"]
    assert told["error"] == {key: damaged[key] for key in ("code", "message", "hint")}
    assert told["error"]["code"] == "record-damaged"

    for command in ("show", "recover"):
        status, out, err = says(command, ID)
        assert (status, out) == (3, "") and f"error: the record {path}" in err
        status, told = answer(says, command, ID)
        assert status == 3 and told["error"]["code"] == "record-damaged"

    status, out, err = says("recover")
    assert (status, out) == (3, "") and f"error: the record {path}" in err
    status, told = answer(says, "recover")
    assert (status, told["migrations"]) == (3, []) and told["damaged"] == [damaged]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    path.with_name("elsewhere").write_text(json.dumps(whole()))


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its name may be too long for a socket's address
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [fifo, link, Path.mkdir, unix_socket])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    records: Records, directory: Path, says: Says, make: Callable[[Path], None]
) -> None:
    make(directory / f"{ID}.json")
    with pytest.raises(RecordDamaged, match="it is not a regular file"):
        records.get(ID)
    assert says("list")[0] == says("show", ID)[0] == says("recover")[0] == 3


@pytest.mark.parametrize("denied", ["the file", "the directory"])
def test_what_may_not_be_read(
    records: Records, directory: Path, says: Says, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    path = put(directory, json.dumps(whole()).encode())
    reads, lists = os.open, os.listdir

    def opens(name: Any, *arguments: Any, **more: Any) -> int:
        if denied == "the file" and Path(name) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return reads(name, *arguments, **more)

    def names(name: Any) -> list[str]:
        if denied == "the directory" and Path(name) == directory:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return lists(name)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "listdir", names)
    wrong = path if denied == "the file" else directory
    for command in ("list", "recover"):
        status, _, err = says(command)
        assert status == 3 and f"{wrong} cannot be gone by: Permission denied" in err


def test_a_directory_that_is_none(directory: Path, says: Says) -> None:
    directory.parent.mkdir()
    directory.write_text("")
    assert says("list")[0] == says("recover")[0] == says("show", ID)[0] == 3


def test_the_size_is_limited_before_it_is_read(
    records: Records, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with put(directory, b"{").open("r+b") as file:
        file.truncate(module.LARGEST + 1)
    with pytest.raises(RecordDamaged, match="larger than 64 MiB"):
        records.get(ID)


def test_none_is_written_that_nobody_would_read(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.begin(Named(ID, "src", "dst", 5000), None)
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(OSError, match="too large"):
        records.end(ID, full(ID, streams=full(ID)["streams"] * 100))
    found = records.get(ID)
    assert found is not None and found["result"] is None


def test_a_damaged_one_is_not_written_over(records: Records, directory: Path) -> None:
    path = put(directory, b"{")
    with pytest.raises(RecordDamaged):
        records.end(ID, full(ID))
    assert path.read_bytes() == b"{"


def test_only_what_has_ended_is_pruned(
    records: Records, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, b"garbage")
    doubt, last = "20261124-130000-000000", "20261124-140000-000000"
    records.begin(Named(doubt, "src", "dst", 5000), None)
    records.end(doubt, full(doubt, outcome=results.IN_DOUBT))
    records.begin(Named(last, "src", "dst", 5000), None)
    monkeypatch.setattr(module, "KEPT", 1)
    records.end(last, full(last))
    assert sorted(one.stem for one in directory.iterdir()) == [ID, doubt, last]
