"""A file that is there in full or as it was: written beside its place, on disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from agent import private


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """On disk when this returns. Raises `OSError`, and then has changed nothing."""
    fd, fresh = tempfile.mkstemp(prefix=f"{path.stem}.", dir=path.parent)  # 0600
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    private.sync(path.parent)


def behind(path: Path) -> Path | None:
    """The regular file, there or not, that a path given by a person leads to: `replace` that.

    None where it leads to a device, a pipe or the like, which is only written into. Raises
    `OSError`.
    """
    real = Path(os.path.realpath(path))
    try:
        found = path.stat()
    except FileNotFoundError:
        return real
    if not stat.S_ISREG(found.st_mode):
        return None
    # An open file that was deleted (/dev/stdout) has no name: it cannot be replaced.
    return real if real.exists() and real.samefile(path) else None


def make(directory: Path) -> None:
    """A directory of this user alone, with those above it, on disk. Raises `OSError`."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        private.sync(one.parent)
