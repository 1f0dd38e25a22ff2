"""The directory of one migration's images: 0700 on tmpfs, files 0600, gone when it is over."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from agent import private
from agent.errors import AgentError, shown
from agent.image.records import ImageError, ImageTooLarge

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}\.img")
_MAX_FILES = 100_000


class ImagesDirectory(AgentError):
    code = "images-directory"
    template = "the images directory {path} cannot be used: {detail}"
    hint_template = "Name a directory on a tmpfs with --images-dir; /run usually is one."


class ImagesFull(AgentError):
    code = "images-full"
    template = "no room is left at the destination for the images in {path}"
    hint_template = "Make room there, or name a larger tmpfs with --images-dir."


class ImageStore:
    """One migration's directory on one host."""

    def __init__(self, parent: str, name: str, limit: int) -> None:
        """Make the directory; at most `limit` bytes are taken in. Raises `ImagesDirectory`."""
        self.path = Path(parent) / name
        self._limit = limit
        self._written = 0
        self._files: dict[str, int] = {}
        try:
            private.make(Path(parent), hidden=False, above=False)  # the one inside it is hidden
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise ImagesDirectory(path=str(self.path), detail=error.strerror or "") from error

    def write(self, name: str, data: bytes) -> None:
        """Append to the image `name`. Raises `ImageError`, `ImageTooLarge` or `ImagesFull`."""
        self._written += len(data)
        if self._written > self._limit:
            raise ImageTooLarge(length=self._written, limit=self._limit)
        fd = self._files.get(name)
        try:
            if fd is None:
                fd = self._open(name)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ImagesFull(path=str(self.path)) from error
            raise ImagesDirectory(path=str(self.path), detail=error.strerror or "") from error

    def _open(self, name: str) -> int:
        if not _NAME.fullmatch(name) or len(self._files) >= _MAX_FILES:
            raise ImageError(detail=f"a file of the image is named {shown(name, 120)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._files[name] = fd = os.open(self.path / name, flags, 0o600)
        return fd

    def finish(self) -> None:
        """All files are complete."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def remove(self) -> None:
        """Leave nothing; the parent goes, too, when it is empty."""
        self.finish()
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
