"""The directories at the destination that what is brought will lie in.

Those that are missing are made as the source has them; those that are there stay as they are. No
part of a path may be a symbolic link: what is brought would then lie elsewhere than it is looked
for, or where somebody who may write there wants it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from agent.errors import ProtocolError, shown
from agent.sync.errors import SyncFull, SyncPathBlocked
from agent.sync.paths import MAX_PATH, MAX_PATHS, ancestors

_MAX_PARENTS = 16 * MAX_PATHS
_MAX_ID = (1 << 32) - 2  # -1 is none, chown(2)
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Parent(NamedTuple):
    """A directory as the source has it. On the wire: a list."""

    path: str
    mode: int  # permissions
    uid: int
    gid: int


def of(dirs: Iterable[str], files: Iterable[str]) -> list[Parent]:
    """Those above these paths and the directories themselves, at the source."""
    wanted = dict.fromkeys(one for path in (*dirs, *files) for one in ancestors(path))
    found = []
    for path in sorted({*wanted, *dirs}):
        try:
            one = os.lstat(path)
        except OSError:
            continue  # the destination has it, or says that it is missing
        found.append(Parent(path, stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid))
    return found


def from_rows(rows: object) -> list[Parent]:
    """Parents that came from elsewhere. Raises `ProtocolError`."""
    if not isinstance(rows, list) or len(rows) > _MAX_PARENTS:
        raise ProtocolError(detail="directories to make that are none")
    found = []
    for row in rows:
        match row:
            case [str(path), int(mode), int(uid), int(gid)] if (
                len(path) <= MAX_PATH
                and 0 <= mode <= 0o7777
                and 0 <= uid <= _MAX_ID
                and 0 <= gid <= _MAX_ID
            ):
                found.append(Parent(path, mode, uid, gid))
            case _:
                raise ProtocolError(detail=f"a directory to make is {shown(row)}")
    return found


def make(dirs: Iterable[str], files: Iterable[str], parents: Iterable[Parent]) -> None:
    """Have a directory at each of `dirs`, and above each path. Raises `SyncPathBlocked`,
    `SyncFull`."""
    known = {one.path: one for one in parents}
    done: set[str] = set()
    for path in dirs:
        _make(path, [*ancestors(path), path], known, done)
    for path in files:
        _make(path, ancestors(path), known, done)


def _make(path: str, steps: list[str], known: dict[str, Parent], done: set[str]) -> None:
    if not steps or steps[-1] in done:
        return
    at = os.open("/", _FLAGS)
    try:
        for step in steps:
            fd = _enter(path, step, at, known.get(step))
            os.close(at)
            at = fd
            done.add(step)
    finally:
        os.close(at)


def _enter(path: str, step: str, at: int, parent: Parent | None) -> int:
    name = os.path.basename(step)
    try:
        try:
            return os.open(name, _FLAGS, dir_fd=at)
        except FileNotFoundError:
            if parent is None:
                raise
        os.mkdir(name, 0o700, dir_fd=at)
        fd = os.open(name, _FLAGS, dir_fd=at)
        try:
            os.fchown(fd, parent.uid, parent.gid)
            os.fchmod(fd, parent.mode)
        except BaseException:
            os.close(fd)
            raise
        return fd
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SyncFull(detail=f"{step}: {error.strerror}") from error
        why = error.strerror or str(error)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            why = "is a symbolic link, or no directory"
        raise SyncPathBlocked(path=path, detail=f"{step} {why} there") from error
