"""Files with holes: only data crosses the link, only what differs, and holes are holes again."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agent.errors import ProtocolError
from agent.image.records import Record
from agent.kernel.syscalls import punch_hole
from agent.link import Link
from agent.plan import Plan
from agent.sync import sparse
from agent.sync.destination import SyncDestination
from agent.sync.errors import SyncFailed, SyncPathBlocked
from agent.sync.sparse import with_holes
from agent.sync.sparse_source import SparseSource

MIB = 1 << 20
GIB = 1 << 30


class Ends:
    """Both ends with a link between them; the destination has the same tree under another root."""

    def __init__(self, source: Path, destination: Path) -> None:
        self.source, self.destination = source, destination
        self.counted = 0
        self._answers: list[Record] = []
        self._sent: list[Record] = []
        plan = Plan.__new__(Plan)
        for name, value in {
            "sync_dirs": (str(destination),), "sync_files": (), "sync_places": (),
        }.items():  # fmt: skip
            object.__setattr__(plan, name, value)
        there = cast(Link, type("There", (), {"send": lambda _, one: self._answers.append(one)})())
        here = cast(
            Link,
            type("Here", (), {"send": lambda _, one: self._sent.append(one)})(),
        )
        self.end = SyncDestination(plan, there, lambda: None)
        self._sender = SparseSource(here, self._answer, self._went)

    async def _went(self, size: int) -> None:
        self.counted += size

    async def _answer(self, op: str) -> Record:
        await self._deliver()
        answer = next(one for one in self._answers if one["op"] != "alive")
        self._answers.clear()
        assert answer["op"] == op
        return answer

    async def _deliver(self) -> None:
        while self._sent:
            await self.end.take(self._moved(self._sent.pop(0)))

    def _moved(self, record: Record) -> Record:
        """As if the destination had the other's root."""
        if "path" in record:
            old, new = os.fsencode(self.source), os.fsencode(self.destination)
            return {**record, "path": record["path"].replace(old, new), "parents": []}
        return record

    def bring(self, *names: str, first: bool) -> set[str]:
        files = [with_holes(str(self.source / name)) for name in names]
        self.counted = 0

        async def both() -> set[str]:
            try:
                return await self._sender.bring([one for one in files if one], first=first)
            finally:
                self.end.close()

        return asyncio.run(both())


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    for name in ("src", "dst"):
        (tmp_path / name).mkdir()
    return Ends(tmp_path / "src", tmp_path / "dst")


def make(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    with open(path, "wb") as file:
        for offset, piece in data:
            os.pwrite(file.fileno(), piece, offset)
        file.truncate(size)


def layout(path: Path) -> list[list[int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return sparse.extents(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def same(ends: Ends, name: str) -> None:
    ours, theirs = ends.source / name, ends.destination / name
    here, there = ours.stat(), theirs.stat()
    for what in ("st_size", "st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(here, what) == getattr(there, what), what
    assert layout(ours) == layout(theirs)
    with open(ours, "rb") as a, open(theirs, "rb") as b:
        for offset, length in layout(ours):
            assert os.pread(a.fileno(), length, offset) == os.pread(b.fileno(), length, offset)
    assert sorted(os.listdir(ends.destination)) == [name], "something is left beside it"


def test_a_hole_costs_nothing(ends: Ends) -> None:
    half = os.urandom(MIB // 2)
    make(ends.source / "f", 10 * GIB, (3 * GIB, half), (10 * GIB - len(half), half))
    os.chmod(ends.source / "f", 0o640)
    os.setxattr(ends.source / "f", "user.x", b"y")
    begin = time.monotonic()
    assert ends.bring("f", first=True) == {str(ends.source / "f")}
    assert time.monotonic() - begin < 1.0
    assert ends.counted == MIB
    same(ends, "f")
    assert os.getxattr(ends.destination / "f", "user.x") == b"y"
    assert (ends.destination / "f").stat().st_blocks * 512 < 2 * MIB


def test_the_same_is_passed_over(ends: Ends) -> None:
    make(ends.source / "f", GIB, (0, b"x" * MIB))
    ends.bring("f", first=True)
    os.chmod(ends.source / "f", 0o600)
    ends.bring("f", first=True)
    assert ends.counted == 0
    same(ends, "f")


@pytest.mark.parametrize("first", [True, False])
def test_only_what_has_changed_goes(ends: Ends, first: bool) -> None:
    """A block that is another, data where a hole was, a hole where data was, another end."""
    make(ends.source / "f", GIB, (0, os.urandom(8 * MIB)), (GIB // 2, os.urandom(MIB)))
    ends.bring("f", first=True)
    fd = os.open(ends.source / "f", os.O_RDWR)
    os.pwrite(fd, b"other", 5 * MIB)
    os.pwrite(fd, b"new", 100 * MIB)
    punch_hole(fd, 2 * MIB, MIB)
    punch_hole(fd, GIB // 2, MIB)
    os.ftruncate(fd, GIB - 4096)
    os.close(fd)
    ends.bring("f", first=first)
    assert ends.counted < 4 * sparse.BLOCK
    same(ends, "f")


def test_all_that_was_data_becomes_a_hole(ends: Ends) -> None:
    make(ends.source / "f", GIB, (0, b"x" * MIB))
    make(ends.destination / "f", 2 * GIB, (5 * MIB, b"x" * MIB), (GIB + MIB, b"x" * MIB))
    ends.bring("f", first=False)
    same(ends, "f")


def test_another_name_of_an_old_file_keeps_its_content(ends: Ends, tmp_path: Path) -> None:
    make(ends.source / "f", GIB, (0, b"new"))
    make(ends.destination / "f", GIB, (0, b"old"))
    os.link(ends.destination / "f", tmp_path / "backup")
    ends.bring("f", first=True)
    same(ends, "f")
    with open(tmp_path / "backup", "rb") as file:
        assert file.read(3) == b"old"


def test_what_has_no_holes_is_for_rsync(ends: Ends) -> None:
    make(ends.source / "dense", MIB, (0, b"x" * MIB))
    make(ends.source / "linked", GIB, (0, b"x"))
    os.link(ends.source / "linked", ends.source / "name")
    assert with_holes(str(ends.source / "dense")) is None
    assert ends.bring("linked", "name", first=True) == set()  # that is left to link
    assert os.listdir(ends.destination) == ["linked"]
    assert ends.bring("linked", "name", first=False) == set() and ends.counted == 0


def test_what_is_in_the_way_is_said(ends: Ends) -> None:
    make(ends.source / "f", GIB, (0, b"x"))
    os.mkfifo(ends.destination / "f")
    with pytest.raises(SyncPathBlocked) as caught:
        ends.bring("f", first=True)
    assert "a fifo is there" in caught.value.message
    assert stat.S_ISFIFO((ends.destination / "f").stat().st_mode)


def test_a_symbolic_link_there_leads_nowhere(ends: Ends, tmp_path: Path) -> None:
    for name in ("src/sub", "outside"):
        (tmp_path / name).mkdir()
    (ends.destination / "sub").symlink_to(tmp_path / "outside")
    make(ends.source / "sub/f", GIB, (0, b"x"))
    with pytest.raises(SyncPathBlocked, match="symbolic link"):
        ends.bring("sub/f", first=True)
    assert os.listdir(tmp_path / "outside") == []
    make(ends.source / "f", GIB, (0, b"x"))
    (ends.destination / "f").symlink_to(tmp_path / "outside/f")
    with pytest.raises(SyncPathBlocked, match="f cannot be brought"):
        ends.bring("f", first=True)
    assert os.listdir(tmp_path / "outside") == []


def test_what_breaks_off_leaves_the_old_file(ends: Ends) -> None:
    make(ends.source / "f", GIB, (0, b"new"))
    make(ends.destination / "f", GIB, (0, b"old"))
    take = ends.end.take

    async def full(record: Record) -> None:
        if record["op"] == "blocks":
            raise SyncFailed(detail="it was cut")
        await take(record)

    ends.end.take = full  # type: ignore[method-assign]
    with pytest.raises(SyncFailed):
        ends.bring("f", first=True)
    assert os.listdir(ends.destination) == ["f"]
    with open(ends.destination / "f", "rb") as file:
        assert file.read(3) == b"old"


def _announced(ends: Ends, **over: Any) -> Record:
    path = os.fsencode(ends.destination / "f")
    plain = [0o600, os.getuid(), os.getgid(), 0]
    return {
        "op": "sparse", "path": path, "size": GIB, "first": True, "attributes": plain,
        "xattrs": [], "parents": [], **over,
    }  # fmt: skip


_HOSTILE: list[tuple[str, Callable[[Ends], list[Record]]]] = [
    ("not planned", lambda e: [_announced(e, path=b"/etc/shadow")]),
    ("not planned", lambda e: [_announced(e, path=os.fsencode(e.destination) + b"/../f")]),
    ("without a path", lambda e: [_announced(e, path="f")]),
    ("number", lambda e: [_announced(e, size=-1)]),
    ("number", lambda e: [_announced(e, attributes=[0o100644, 0, 0, 0])]),
    ("attributes", lambda e: [_announced(e, attributes=[0o644])]),
    ("time", lambda e: [_announced(e, attributes=[0o644, 0, 0, "now"])]),
    ("extended", lambda e: [_announced(e, xattrs=[["user.x", b""]])]),
    ("none was named", lambda _: [{"op": "extents", "rows": [[0, 1]], "digests": b""}]),
    ("before the one before", lambda e: [_announced(e), _announced(e)]),
    ("out of turn", lambda e: [_announced(e), {"op": "extents", "rows": [], "digests": b""}]),
    ("more data of a file than it has",
     lambda e: [_announced(e), {"op": "extents", "rows": [[GIB, 1]], "digests": b""}]),
    ("data of a file at",
     lambda e: [_announced(e), {"op": "extents", "rows": [[9, 1], [0, 1]], "digests": b""}]),
    ("than was wanted", lambda e: [_announced(e), {"op": "blocks", "data": b"x"}]),
    ("a part of a block",
     lambda e: [_announced(e), {"op": "extents", "rows": [[0, 9]], "digests": b""},
                {"op": "blocks", "data": b"x"}]),
    ("before all of it",
     lambda e: [_announced(e), {"op": "extents", "rows": [[0, 9]], "digests": b""},
                {"op": "whole"}]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "records"), _HOSTILE)
def test_a_hostile_source(ends: Ends, words: str, records: Callable[[Ends], list[Record]]) -> None:
    async def take() -> None:
        try:
            for record in records(ends):
                await ends.end.take(record)
        finally:
            ends.end.close()

    with pytest.raises(ProtocolError) as caught:
        asyncio.run(take())
    assert words in caught.value.message
