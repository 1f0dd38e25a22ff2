"""Directories that nobody else has a hand in: for images, which have secrets, and for journals.

What recovery does, it does as the journals say, and CRIU restores as root what the images say: a
directory that another user has made, or can exchange, is not used.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

ROOT = 0


def make(path: Path, *, hidden: bool = True, above: bool = True) -> None:
    """Make a directory, 0700, unless it is there, with those above it where asked for.

    Raises `OSError`, as `check` does, and then has made nothing where others have a hand.
    """
    _check_above(path)
    for one in (*reversed(path.parents), path) if above else (path,):
        try:
            one.mkdir(mode=0o700)
        except (FileExistsError, IsADirectoryError):
            continue
    check(path, hidden=hidden)


def check(path: Path, *, hidden: bool = True) -> None:
    """Raises `OSError`, in words that end in what to do, where others have a hand in a directory.

    It must be this user's, and only this user may write to it (with `hidden`: or look into it).
    Those above it may be root's, too, and others may write to them where only the owner of an entry
    may rename it (as in /tmp).
    """
    _check_above(path)
    found = os.lstat(path)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal(f"{path} is not a directory: remove it, or use another")
    if found.st_uid != os.geteuid():
        raise _refusal(f"{path} belongs to user {found.st_uid}: remove it, or use another")
    if mode & (0o077 if hidden else 0o022):
        raise _refusal(f"others may use {path} (mode {mode:o}): `chmod 700 {path}`")


def sync(path: Path) -> None:
    """Have what was made or removed in a directory on disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_above(path: Path) -> None:
    """What is not there is made by us, or `mkdir` fails."""
    resolved = Path(os.path.realpath(path.parent))
    for one in {*path.parents, resolved, *resolved.parents}:
        try:
            found = os.lstat(one)
        except FileNotFoundError:
            continue
        if found.st_uid not in (ROOT, os.geteuid()):
            raise _refusal(f"{one} belongs to user {found.st_uid}: use a directory elsewhere")
        if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022 and not found.st_mode & 0o1000:
            raise _refusal(f"others may write to {one}: `chmod go-w {one}`, or use another")


class Exposed(PermissionError):
    """Others may have written a file."""


def check_file(fd: int) -> None:
    """Raises `Exposed` where others may have written an open file."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Exposed(errno.EPERM, "it is not a regular file")
    if found.st_uid != os.geteuid():
        raise Exposed(errno.EPERM, f"it belongs to user {found.st_uid}")
    if found.st_mode & 0o022:
        mode = stat.S_IMODE(found.st_mode)
        raise Exposed(errno.EPERM, f"others may write to it (mode {mode:o})")


def _refusal(detail: str) -> OSError:
    return PermissionError(errno.EPERM, detail)
