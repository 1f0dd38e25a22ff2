"""Files with holes: rsync reads a hole and sends it as zeros, so what is not hole is brought by us.

Shared by both ends: where the data is (SEEK_DATA and SEEK_HOLE, lseek(2)), digests of its blocks,
and what else belongs to a file. `sparse_source` and `sparse_destination` speak of it:

    source -> {"op": "sparse", what file}      <- {"op": "sparse", "has": SAME, NONE or SOME}
           -> {"op": "extents", "rows": [[offset, length]], "digests": bytes}, in order
                                               <- {"op": "wanted", "blocks": a byte each}
           -> {"op": "blocks", "data": bytes} until all that is wanted has come
           -> {"op": "whole"}                  <- {"op": "written"}
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.sync.errors import SyncFailed, SyncFull

SAME, NONE, SOME = "same", "none", "some"  # of the file, at the destination
WORTH = 256 << 10  # bytes of holes: for fewer the zeros cost less than to ask for them
MOST = 4096  # files of a pass; one after the other they are slower than rsync
BLOCK = 128 << 10  # the unit of digests
BATCH = 64 << 20  # bytes of data that are spoken of at once, and
ROWS = 1024  # extents
DIGEST = 16  # bytes
_SECTOR = 512  # bytes, of st_blocks


@dataclass(frozen=True, slots=True)
class Sparse:
    """A file that has holes by its size."""

    path: str
    holes: int  # bytes
    inode: tuple[int, int]
    links: int


def allocated(found: os.stat_result) -> int:
    """Bytes of a regular file that are not holes, about."""
    return min(found.st_size, found.st_blocks * _SECTOR)


def with_holes(path: str, found: os.stat_result | None = None) -> Sparse | None:
    """The file, if it is there and has holes that are worth it."""
    try:
        found = found or os.lstat(path)
    except OSError:
        return None
    holes = found.st_size - allocated(found)
    if not stat.S_ISREG(found.st_mode) or holes < WORTH:
        return None
    return Sparse(path, holes, (found.st_dev, found.st_ino), found.st_nlink)


def has_hole(fd: int, size: int) -> bool:
    """Whether the filesystem knows of one: a compressed file only looks like it."""
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False


def extents(fd: int, start: int, size: int) -> list[list[int]]:
    """The next [offset, length] of data from `start` on, a batch at most."""
    rows: list[list[int]] = []
    left = BATCH
    while start < size and left and len(rows) < ROWS:
        try:
            offset = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # none is left
        end = min(os.lseek(fd, offset, os.SEEK_HOLE), size)
        if offset >= end:
            break
        length = min(end - offset, left)
        rows.append([offset, length])
        left -= length
        start = offset + length
    return rows


def blocks(rows: Iterable[Iterable[int]]) -> Iterator[tuple[int, int]]:
    """(offset, length) of each block of these extents."""
    for offset, length in rows:
        for at in range(offset, offset + length, BLOCK):
            yield at, min(BLOCK, offset + length - at)


def read(fd: int, offset: int, length: int) -> bytes:
    """As many bytes; what has been cut off meanwhile as zeros."""
    data = bytearray()
    while len(data) < length and (piece := os.pread(fd, length - len(data), offset + len(data))):
        data += piece
    return bytes(data.ljust(length, b"\0"))


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def digests(fd: int, rows: Iterable[Iterable[int]]) -> bytes:
    return b"".join(digest(read(fd, *one)) for one in blocks(rows))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What else belongs to a file, as rsync would bring it."""

    mode: int  # permissions
    uid: int
    gid: int
    mtime: int  # nanoseconds
    xattrs: dict[str, bytes]  # ACLs among them

    @staticmethod
    def of(fd: int) -> Attributes:
        found = os.fstat(fd)
        xattrs = {name: os.getxattr(fd, name) for name in _xattrs(fd)}
        mode = stat.S_IMODE(found.st_mode)
        return Attributes(mode, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)

    def put(self, fd: int) -> None:
        """Have the file with them."""
        os.fchown(fd, self.uid, self.gid)
        os.fchmod(fd, self.mode)
        there = set(_xattrs(fd))
        for name in there - self.xattrs.keys():
            os.removexattr(fd, name)
        for name, value in self.xattrs.items():
            if name not in there or os.getxattr(fd, name) != value:
                os.setxattr(fd, name, value)
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, self.mtime))


def _xattrs(fd: int) -> list[str]:
    """Those that rsync brings: what is "system" is the filesystem's own, but for ACLs."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise
    return [one for one in names if not one.startswith("system.") or "posix_acl" in one]


def failed(path: str, error: OSError) -> SyncFull | SyncFailed:
    """The error that names the file."""
    kind = SyncFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SyncFailed
    return kind(detail=f"{path}: {error.strerror or error}")
