"""Files are brought by two real rsyncs, with all that belongs to them, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import PeerLost
from agent.image.records import Record
from agent.probe.facts import FileProblem
from agent.sync import changes
from agent.sync.changes import Moment
from agent.sync.child import PIECE
from agent.sync.errors import SyncDiffers, SyncFailed, SyncFull, SyncRestless, SyncTooMany
from agent.sync.rsync import Pass
from agent.sync.sparse_destination import SparseFile
from tests.support.polling import until
from tests.support.sync import elsewhere, ends


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def there(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the destination has at the path of `here`."""
    path = tmp_path / "there"
    path.mkdir()
    elsewhere(monkeypatch, here, path)
    return path


@pytest.fixture
def small(there: Path) -> Iterator[Path]:
    """As `there`, with room for 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", there], check=True)
    yield there
    subprocess.run(["umount", there], check=True)


def fill(here: Path) -> None:
    (here / "data").write_bytes(os.urandom(3 << 20))
    os.chmod(here / "data", 0o640)
    os.chown(here / "data", 1234, 4321)
    os.utime(here / "data", ns=(1, 1_700_000_000_123_456_789))
    os.setxattr(here / "data", "user.origin", b"here")
    os.link(here / "data", here / "same")
    (here / "link").symlink_to("/etc/passwd")
    sub = here / "sub"
    sub.mkdir(0o750)
    with open(sub / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)


def change(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in root.rglob("*"):
        one = path.lstat()
        kind = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        target = os.readlink(path) if path.is_symlink() else ""
        when = one.st_mtime_ns if kind is not None else 0  # rsync sends seconds of all others
        found[str(path.relative_to(root))] = (
            one.st_mode, one.st_uid, one.st_gid, when, one.st_nlink, target, kind,
        )  # fmt: skip
    return found


async def test_all_that_belongs_to_them(here: Path, there: Path) -> None:
    fill(here)
    async with ends([here]) as both:
        await both.until(both.source.bring())
        first = both.source.sent
    assert listing(there) == listing(here)
    assert os.getxattr(there / "data", "user.origin") == b"here"
    assert (there / "data").stat().st_ino == (there / "same").stat().st_ino
    assert (there / "sub/sparse").stat().st_blocks * 512 < 1 << 20
    assert first > 3 << 20 and both.progress[-1][0] == both.progress[-1][1]
    async with ends([here]) as both:
        await both.until(both.source.bring())
    assert both.source.sent < 4096


async def test_what_changes_is_brought_at_the_freeze(here: Path, there: Path) -> None:
    fill(here)
    async with ends([here]) as both:
        await both.until(both.source.bring())
        await both.until(both.source.settle([os.getpid()]))
        change(here / "data")
        (here / "sub/new").write_text("new")
        both.source.frozen([])
        assert await both.until(both.source.finished())
        both.destination.check_over()
        await both.until(both.destination.on_disk())
    assert listing(there) == listing(here)


async def test_nothing_changed(here: Path, there: Path) -> None:
    fill(here)
    async with ends([here]) as both:
        await both.until(both.source.bring())
        # Until a change can be told from one of now.
        await until(lambda: not changes.since(Moment(), [str(here)], []).paths)
        await both.until(both.source.bring())
        await both.until(both.source.settle([os.getpid()]))
        both.source.frozen([])
        assert not await both.until(both.source.finished())


def sparse_file(path: Path, size: int, *at: int) -> None:
    with open(path, "r+b" if path.exists() else "wb") as file:
        for offset in at:
            os.pwrite(file.fileno(), os.urandom(1 << 16), offset)
        file.truncate(size)


def read(path: Path, offset: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), 1 << 16, offset)


async def test_holes_cost_nothing(here: Path, there: Path) -> None:
    """Whoever writes to the file meanwhile; and in the blackout."""
    size = 10 << 30
    path = here / "sub/sparse [*]"
    path.parent.mkdir()
    sparse_file(path, size, *range(0, 16 << 16, 1 << 16))
    os.chown(path, 1234, 4321)
    async with ends([here]) as both:
        begin = time.monotonic()
        both.source._progress = lambda *_: sparse_file(path, size, 1 << 20)
        await both.until(both.source.bring())
        took, both.source._progress = time.monotonic() - begin, lambda *_: None
        await both.until(both.source.settle([os.getpid()]))
        sparse_file(path, size + 5, 5 << 30)
        both.source.frozen([])
        assert await both.until(both.source.finished())
        both.destination.check_over()
        await both.until(both.destination.on_disk())
    assert took < 2.0 and both.source.sent < 4 << 20
    ours, theirs = path.stat(), (there / "sub/sparse [*]").stat()
    for what in ("st_size", "st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(ours, what) == getattr(theirs, what), what
    assert theirs.st_blocks * 512 < 4 << 20
    for offset in (0, 1 << 20, 5 << 30):
        found = read(path, offset)
        assert found == read(there / "sub/sparse [*]", offset) != bytes(1 << 16)


async def test_fifos_come_and_sockets_stay(here: Path, there: Path) -> None:
    os.mkfifo(here / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(here / "socket"))
        async with ends([here]) as both:
            await both.until(both.source.bring())
            await both.until(both.source.settle([os.getpid()]))
            os.chmod(here / "socket", 0o600)
            both.source.frozen([])
            await both.until(both.source.finished())
    assert both.source.left == [str(here / "socket")]
    assert os.listdir(there) == ["fifo"]
    assert (there / "fifo").lstat().st_mode == (here / "fifo").lstat().st_mode


async def test_nothing_is_written_elsewhere(tmp_path: Path, here: Path, there: Path) -> None:
    """Names that were not planned, as a source of another mind would send them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    before = (outside / "file").stat()
    async with ends([here]) as both:
        await both.until(both.source._begin(Pass.AGAIN))
        with pytest.raises(SyncFailed, match="Read-only file system"):
            await both.until(both.source._end([str(outside / "file"), "/etc/new"], final=True))
    assert (outside / "file").stat().st_ino == before.st_ino
    assert list(outside.iterdir()) == [outside / "file"] and not Path("/etc/new").exists()


async def test_symbolic_links_at_the_destination_lead_nowhere(
    tmp_path: Path, here: Path, there: Path
) -> None:
    """Planted there by whoever may write in the directory."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (here / "sub").mkdir()
    (here / "sub/file").write_text("x")
    (there / "sub").symlink_to(outside)
    async with ends([here]) as both:
        await both.until(both.source.bring())
    assert list(outside.iterdir()) == []
    assert (there / "sub/file").read_text() == "x" and not (there / "sub").is_symlink()


@pytest.mark.parametrize("killed", ["the source's", "the destination's"])
async def test_an_rsync_is_killed(here: Path, there: Path, killed: str) -> None:
    fill(here)
    async with ends([here]) as both:
        await both.until(both.source._begin(Pass.FIRST))
        child = both.source._client if killed == "the source's" else both.destination._server
        assert child is not None
        os.kill(child._process.pid, 9)
        with pytest.raises(SyncFailed):
            await both.until(both.source._end([str(here)], final=True))


async def test_a_disk_that_fills_is_one_error_and_no_word_beside_it(
    here: Path, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "data").write_bytes(os.urandom(64 << 20))
    async with ends([here]) as both:
        with pytest.raises(SyncFull, match="data.*No space left on device"):
            await both.until(both.source.bring())
    assert caplog.records == []


async def test_a_disk_that_fails_after_another_error_says_no_more(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was brought could not be written out, and nobody waits for that any more."""

    def full(*_: object) -> None:
        raise SyncFull(detail="no room")

    monkeypatch.setattr("agent.sync.destination._flush", full)
    async with ends([here]) as both:
        await both.until(both.source.settle([os.getpid()]))
        (here / "new").write_text("new")
        both.source.frozen([])
        await both.until(both.source.finished())
        flushing = both.destination._flushing
        assert flushing is not None
        await until(flushing.done)
    del both, flushing
    gc.collect()
    assert caplog.records == []


async def test_it_is_held_up_by_a_slow_destination(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is under way than the window, whatever the link would take."""
    monkeypatch.setattr("agent.sync.source._WINDOW", 1 << 20)
    fill(here)
    most = 0
    async with ends([here]) as both:
        take = both.destination.take

        async def slowly(record: Record) -> None:
            nonlocal most
            await asyncio.sleep(0)
            most = max(most, both.source._under_way)
            await take(record)

        both.destination.take = slowly  # type: ignore[method-assign]
        await both.until(both.source.bring())
    assert listing(there) == listing(here) and 0 < most <= (1 << 20) + PIECE


async def test_both_end_with_their_agent(here: Path, there: Path) -> None:
    async with ends([here]) as both:
        await both.until(both.source.settle([os.getpid()]))
        ours, theirs = both.source._client, both.destination._server
        assert ours is not None and theirs is not None
        pids = [ours._process.pid, theirs._process.pid]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_destination_that_is_silent(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sync.source._SILENCE", 0.2)
    monkeypatch.setattr("agent.sync.source.SAY_EVERY", 0.05)
    fill(here)
    async with ends([here]) as both:
        both.tasks[1].cancel()
        with pytest.raises(PeerLost, match="silent"):
            await both.source.bring()


async def test_the_bandwidth_is_kept(here: Path, there: Path) -> None:
    (here / "data").write_bytes(os.urandom(1 << 20))
    sparse_file(here / "sparse", 1 << 30, *range(0, 1 << 20, 1 << 16))
    begin = time.monotonic()
    async with ends([here], bandwidth=2 << 20) as both:
        await both.until(both.source.bring())
    assert time.monotonic() - begin > 0.9 and both.source.sent > 2 << 20


async def test_a_slow_disk_is_no_silence(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sync.source._SILENCE", 0.3)
    monkeypatch.setattr("agent.sync.source.SAY_EVERY", 0.05)
    monkeypatch.setattr("agent.sync.destination.SAY_EVERY", 0.05)
    opened = SparseFile.open

    def slowly(file: SparseFile) -> str:
        threading.Event().wait(1.0)
        return opened(file)

    monkeypatch.setattr(SparseFile, "open", slowly)
    sparse_file(here / "sparse", 1 << 30, 0)
    async with ends([here]) as both:
        await both.until(both.source.bring())
    assert (there / "sparse").stat().st_size == 1 << 30


async def test_files_that_change_faster_than_they_come(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sync.source._SMALL", 1 << 20)
    fill(here)

    def touch_all(*_: object) -> None:
        for path in here.iterdir():
            os.utime(path, follow_symlinks=False)

    async with ends([here], max_blackout=0.001) as both:
        monkeypatch.setattr("agent.sync.source._LOOK_SHARE", 1e6)
        both.source._progress = touch_all
        with pytest.raises(SyncRestless, match="data|same"):
            await both.until(both.source.bring())
    async with ends([here], max_blackout=0.0001) as both:
        monkeypatch.setattr("agent.sync.source._LOOK_SHARE", 0.25)
        with pytest.raises(SyncTooMany):
            await both.until(both.source.bring())


async def test_what_is_not_brought_must_be_the_same(
    tmp_path: Path, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file opened since: one that is brought comes, any other is compared."""
    (here / "file").write_text("x")
    other = tmp_path / "other"
    other.write_text("x")
    monkeypatch.setattr("agent.sync.changes.opened", lambda _: {str(other), str(here / "file")})
    async with ends([here]) as both:
        await both.until(both.source.bring())
        await both.until(both.source.settle([]))
        both.source.frozen([])
        await both.until(both.source.finished())
    monkeypatch.setattr(
        "agent.sync.destination.files.compare",
        lambda one: FileProblem(
            path=one["path"], problem="missing", detail="", pid=1, use="opened"
        ),
    )
    async with ends([here]) as both:
        await both.until(both.source.bring())
        await both.until(both.source._begin(Pass.LAST))
        both.source.frozen([])
        with pytest.raises(SyncDiffers, match="other .*missing"):
            await both.until(both.source.finished())
