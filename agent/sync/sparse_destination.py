"""The destination's end of a file with holes: what is data is written, all else is a hole again."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator

from agent.errors import ProtocolError, shown
from agent.image.records import Record
from agent.kernel import mounts, proc
from agent.kernel.syscalls import punch_hole, write_at
from agent.probe.files import kind_of
from agent.sync import sparse
from agent.sync.errors import SyncPathBlocked
from agent.sync.paths import MAX_PATH, is_in
from agent.sync.sparse import BATCH, DIGEST, NONE, ROWS, SAME, SOME, Attributes

_PATIENCE = 0.1  # seconds
_LARGEST = 1 << 62
_MOST_XATTRS = 1 << 10
_MAX_ID = (1 << 32) - 2
_NAME = 200  # bytes of a name that the one of its unfinished copy has
_PATH_ROOM = 1 << 10  # bytes of a path below the longest that can be named
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def checked_path(record: Record, dirs: Iterable[str], files: Iterable[str]) -> str:
    """The path of a file that comes, which was planned. Raises `ProtocolError`."""
    data = record.get("path")
    if not isinstance(data, bytes) or len(data) > MAX_PATH + _PATH_ROOM or b"\0" in data:
        raise ProtocolError(detail="a file came without a path")
    path = os.fsdecode(data)
    if os.path.normpath(path) != path or not (path in files or is_in(path, dirs)):
        raise ProtocolError(detail=f"{shown(path)} came, which was not planned")
    return path


class SparseFile:
    """One that comes. Its methods but `close` are for a thread, as they wait for the disk, and
    raise `ProtocolError`, `SyncPathBlocked`, `SyncFailed`, `SyncFull`."""

    def __init__(self, path: str, record: Record) -> None:
        self._path = path
        self._first = record.get("first") is True
        self._size = _number(record.get("size"), _LARGEST)
        self._attributes = _attributes(record)
        self._place = self._fd = -1
        self._unfinished = ""  # the name of a copy that takes the file's place in the end
        self._written = 0  # up to here all is as it is to be
        self._wanted: list[tuple[int, int]] = []
        self._busy = threading.Lock()
        self._left = False

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._busy:
            try:
                if self._left:
                    raise OSError(errno.ECANCELED, "it was given up")
                yield
            except OSError as error:
                raise sparse.failed(proc.printable(self._path), error) from error
            finally:
                if self._left:
                    self._leave()

    def open(self) -> str:
        """What there is of it."""
        with self._at_work():
            self._place = mounts.open_without_symlinks(os.path.dirname(self._path))
            return self._open()

    def _open(self) -> str:
        name = os.path.basename(self._path)
        try:
            found = os.stat(name, dir_fd=self._place, follow_symlinks=False)
        except FileNotFoundError:
            self._fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._place)
            return NONE
        if not stat.S_ISREG(found.st_mode):
            detail = f"a {kind_of(found.st_mode)} is there, not a file"
            raise SyncPathBlocked(path=proc.printable(self._path), detail=detail)
        self._fd = os.open(name, _FLAGS, dir_fd=self._place)
        if not self._first:
            return SOME
        if (found.st_size, found.st_mtime_ns) == (self._size, self._attributes.mtime):
            self._attributes.put(self._fd)
            return SAME
        self._copy(name)
        return SOME

    def _copy(self, name: str) -> None:
        """Work on a copy: others may have this file open, or under another name."""
        old = self._fd
        unfinished = f".{os.fsdecode(os.fsencode(name)[:_NAME])}.{secrets.token_hex(3)}"
        flags = _FLAGS | os.O_CREAT | os.O_EXCL
        self._fd = os.open(unfinished, flags, 0o600, dir_fd=self._place)
        self._unfinished = unfinished
        try:
            size, start = min(os.fstat(old).st_size, self._size), 0
            while rows := sparse.extents(old, start, size):
                for offset, length in rows:
                    while length and (done := os.copy_file_range(
                        old, self._fd, length, offset, offset
                    )):  # fmt: skip
                        offset, length = offset + done, length - done
                start = sum(rows[-1])
        finally:
            os.close(old)

    def extents(self, record: Record) -> bytes:
        """The next data that there is: which of its blocks are wanted, a byte each."""
        rows, digests = record.get("rows"), record.get("digests")
        if not isinstance(rows, list) or not 0 < len(rows) <= ROWS or self._wanted:
            raise ProtocolError(detail="data of a file out of turn")
        if not isinstance(digests, bytes):
            raise ProtocolError(detail="data of a file without digests")
        end, total = self._written, 0
        for row in rows:
            match row:
                case [int(offset), int(length)] if end <= offset and 0 < length:
                    end, total = offset + length, total + length
                case _:
                    raise ProtocolError(detail=f"data of a file at {shown(row)}")
        if end > self._size or total > BATCH:
            raise ProtocolError(detail="more data of a file than it has")
        with self._at_work():
            for offset, length in rows:
                self._hole(self._written, offset)
                self._written = offset + length
            blocks = list(sparse.blocks(rows))
            if not digests:
                self._wanted = blocks
                return b""
            if len(digests) != DIGEST * len(blocks):
                raise ProtocolError(detail="data of a file without its digests")
            ours = sparse.digests(self._fd, rows)
        spots = range(0, len(digests), DIGEST)
        wanted = bytes(ours[at : at + DIGEST] != digests[at : at + DIGEST] for at in spots)
        self._wanted = [one for one, want in zip(blocks, wanted, strict=True) if want]
        return wanted

    def _hole(self, start: int, end: int) -> None:
        """Have nothing there; beyond its end nothing is."""
        end = min(end, os.fstat(self._fd).st_size)
        if start < end and sparse.extents(self._fd, start, end):
            punch_hole(self._fd, start, end - start)

    def blocks(self, data: object) -> None:
        """The next of them."""
        if not isinstance(data, bytes):
            raise ProtocolError(detail="data of a file that is none")
        view = memoryview(data)
        taken = 0
        with self._at_work():
            for offset, length in self._wanted:
                if not view:
                    break
                if len(view) < length:
                    raise ProtocolError(detail="a part of a block of a file")
                write_at(self._fd, view[:length], offset)
                view, taken = view[length:], taken + 1
        if view:
            raise ProtocolError(detail="more data of a file than was wanted")
        del self._wanted[:taken]

    def whole(self, to_disk: bool) -> None:
        """All of it has come. `to_disk`: wait until it is there, too."""
        if self._wanted:
            raise ProtocolError(detail="a file ended before all of it had come")
        with self._at_work():
            self._hole(self._written, self._size)
            os.ftruncate(self._fd, self._size)
            self._attributes.put(self._fd)
            if to_disk:
                os.fsync(self._fd)
            if self._unfinished:
                name = os.path.basename(self._path)
                os.rename(self._unfinished, name, src_dir_fd=self._place, dst_dir_fd=self._place)
                self._unfinished = ""

    def close(self) -> None:
        """Leave no copy that is not whole; what is under way does so at its end. Idempotent."""
        self._left = True
        if self._busy.acquire(timeout=_PATIENCE):
            self._leave()
            self._busy.release()

    def _leave(self) -> None:
        if self._unfinished:
            with contextlib.suppress(OSError):
                os.unlink(self._unfinished, dir_fd=self._place)
            self._unfinished = ""
        for fd in (self._fd, self._place):
            if fd >= 0:
                os.close(fd)
        self._fd = self._place = -1


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ProtocolError(detail=f"{shown(value)} came of a file where a number was to be")
    return value


def _attributes(record: Record) -> Attributes:
    plain, rows = record.get("attributes"), record.get("xattrs")
    if not isinstance(plain, list) or len(plain) != 4:
        raise ProtocolError(detail="a file came without its attributes")
    if not isinstance(rows, list) or len(rows) > _MOST_XATTRS:
        raise ProtocolError(detail="a file came without its extended attributes")
    xattrs = {}
    for row in rows:
        match row:
            case [bytes(name), bytes(value)] if name and b"\0" not in name:
                xattrs[os.fsdecode(name)] = value
            case _:
                raise ProtocolError(detail="a malformed extended attribute")
    mode, uid, gid, mtime = plain
    most = (0o7777, _MAX_ID, _MAX_ID)
    numbers = [_number(*one) for one in zip((mode, uid, gid), most, strict=True)]
    if not isinstance(mtime, int) or abs(mtime) >= 1 << 63:
        raise ProtocolError(detail="a file came without a time")
    return Attributes(numbers[0], numbers[1], numbers[2], mtime, xattrs)
