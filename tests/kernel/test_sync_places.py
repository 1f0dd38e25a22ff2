"""Directories that are made at the destination, and symbolic links that are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.sync import changes, places
from agent.sync.changes import Moment
from agent.sync.errors import SyncPathBlocked
from agent.sync.look import look
from agent.sync.places import Parent


def test_those_that_are_missing_are_made_as_at_the_source(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(0o711)
    parents = [Parent(str(there), 0o777, 1, 1), Parent(str(there / "a"), 0o2750, 1234, 4321)]
    places.make([], [str(there / "a/b")], parents)
    made = (there / "a").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (0o2750, 1234, 4321)
    assert stat.S_IMODE(there.stat().st_mode) == 0o711  # what is there stays as it is
    assert not (there / "a/b").exists()
    places.make([str(there / "a/b")], [], [Parent(str(there / "a/b"), 0o700, 5, 5)])
    assert (there / "a/b").stat().st_uid == 5


def test_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(0o700)
    found = {one.path: one for one in places.of([str(tmp_path / "a")], ["/nowhere/x/file"])}
    assert found[str(tmp_path / "a")].mode == 0o700 and found[str(tmp_path)].uid == os.getuid()
    assert "/nowhere" not in found


@pytest.mark.parametrize("what", ["link", "file", "missing"])
def test_what_is_in_the_way(tmp_path: Path, what: str) -> None:
    way, outside = tmp_path / "way", tmp_path / "outside"
    outside.mkdir()
    if what == "link":
        way.symlink_to(outside)
    elif what == "file":
        way.write_text("x")
    with pytest.raises(SyncPathBlocked, match="way"):
        places.make([], [str(way / "a/file")], [Parent(str(way / "a"), 0o700, 0, 0)])
    assert list(outside.iterdir()) == []


def test_changes_since_a_moment(tmp_path: Path) -> None:
    for name in ("old", "new", "sub"):
        (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).write_text("x")
    (tmp_path / "sub/file").write_text("12345")
    everything = changes.since(None, [str(tmp_path)], [])
    assert everything.looked_at == 5 and everything.total == 7
    now = Moment()
    later = Moment(now.real + 10**9, now.monotonic + 10**9)
    assert changes.since(later, [str(tmp_path)], [str(tmp_path / "old")]).paths == []
    before = Moment()
    (tmp_path / "sub/file").write_text("1234567")
    found = changes.since(before, [str(tmp_path / "sub")], [])
    assert str(tmp_path / "sub/file") in found.paths
    assert found.bytes == 7 and found.largest == str(tmp_path / "sub/file")


def test_a_clock_that_was_set_back() -> None:
    moment = Moment()
    ahead = Moment(moment.real + 10**10, moment.monotonic)  # ten seconds were taken from it since
    assert ahead.earliest() <= moment.real


def test_files_that_are_open(tmp_path: Path) -> None:
    path = tmp_path / "open"
    with open(path, "w"):
        found = changes.opened([os.getpid()])
    assert str(path) in found and all(Path(one).is_file() for one in found)
    assert str(path) not in changes.opened([os.getpid()])


def test_a_look_at_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    names = ["file", "link", "fifo", "none", "."]
    found = look([os.path.normpath(tmp_path / name) for name in names])
    assert found["rsync"] is None
    assert [one["kind"] for one in found["paths"]] == [
        "file", "link", "fifo", "missing", "directory",
    ]  # fmt: skip
    assert found["paths"][1]["real"] == str(tmp_path / "file")
