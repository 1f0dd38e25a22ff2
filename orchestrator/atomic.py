"""A file that is there in full or as it was: written beside its place, on disk, then renamed."""

from __future__ import annotations

import contextlib
import os
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


def make(directory: Path) -> None:
    """A directory of this user alone, with those above it, on disk. Raises `OSError`."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        private.sync(one.parent)
