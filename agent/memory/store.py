"""Pages of one process that have come ahead of it: a sparse file on the images' tmpfs.

A page lies at its own address in the file; what was never written, or was zeros, is a hole. Beside
it is what of them is still at the source (`missing`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ProtocolError
from agent.image.records import ImageTooLarge, Record
from agent.image.store import ImagesDirectory, ImagesFull
from agent.kernel.syscalls import punch_hole, write_at
from agent.memory import missing
from agent.memory.layout import PAGE, is_run
from agent.memory.missing import Missing, checked_map
from agent.memory.pagemaps import LATER, NONE
from agent.plan import checked_pid

MAX_RUNS = 1 << 16  # of a record
MAX_PROCESSES = 1 << 12
_BLOCK = 512  # bytes, of st_blocks


def file_name(pid: int) -> str:
    return f"memory-{pid}"


class PageStores:
    """The files of all processes of one migration."""

    def __init__(self, directory: Path, limit: int) -> None:
        """`limit`: bytes that they may take in all."""
        self._directory = directory
        self._limit = limit
        self._files: dict[int, int] = {}
        self._lists: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._maps: dict[int, int] = {}
        self._there = 0  # bytes of pages that were told of
        self.owed = False  # something is missing

    def take(self, record: Record) -> int:
        """A record {"pid": int, "runs": [[address, pages, has data]], "data": bytes}.

        Returns the bytes of pages in it. Raises `ProtocolError`, `ImageTooLarge`, `ImagesFull`,
        `ImagesDirectory`.
        """
        pid, runs, data = checked_pid(record.get("pid")), record.get("runs"), record.get("data")
        if not isinstance(runs, list) or len(runs) > MAX_RUNS or not isinstance(data, bytes):
            raise ProtocolError(detail="a malformed record of pages")
        view = memoryview(data)
        with self._errors():
            fd = self._file(self._files, pid, file_name(pid))
            for run in runs:
                view = self._run(fd, run, view)
            self._sizes[pid] = os.fstat(fd).st_blocks * _BLOCK
        if view:
            raise ProtocolError(detail="a record of pages with data that belongs to none")
        self._keep_to_limit()
        return len(data)

    def owe(self, record: Record) -> None:
        """A record {"pid": int, "address": int, "map": bytes}: what there is of the process, and
        what of it comes later (`agent.memory.pagemaps`). What it had before is not so any more.

        Raises as `take`.
        """
        pid = checked_pid(record.get("pid"))
        address, pages = checked_map(record.get("address"), record.get("map"))
        with self._errors():
            self._file(self._files, pid, file_name(pid))
            fd = self._file(self._lists, pid, missing.file_name(pid))
            Missing(fd).mark(address, pages)
            self._maps[pid] = os.fstat(fd).st_blocks * _BLOCK
        self._there += (len(pages) - pages.count(NONE)) * PAGE
        if self._there > self._limit:  # each may be a range by itself
            raise ImageTooLarge(length=self._there, limit=self._limit)
        self._keep_to_limit()
        self.owed = self.owed or LATER in pages

    def _keep_to_limit(self) -> None:
        if (size := sum(self._sizes.values()) + sum(self._maps.values())) > self._limit:
            raise ImageTooLarge(length=size, limit=self._limit)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise ImagesFull(path=str(self._directory)) from error
            detail = error.strerror or ""  # EFBIG: ext4 has no file as large as addresses are
            raise ImagesDirectory(path=str(self._directory), detail=detail) from error

    def _run(self, fd: int, run: object, view: memoryview) -> memoryview:
        match run:
            case [int(address), int(pages), int(has_data)] if is_run(address, pages):
                length = pages * PAGE
            case _:
                raise ProtocolError(detail="a malformed run of pages")
        if not has_data:
            punch_hole(fd, address, length)
            return view
        if len(view) < length:
            raise ProtocolError(detail="a record of pages with less data than it says")
        write_at(fd, view[:length], address)
        return view[length:]

    def _file(self, files: dict[int, int], pid: int, name: str) -> int:
        fd = files.get(pid)
        if fd is None:
            if len(files) >= MAX_PROCESSES:
                raise ProtocolError(detail="pages of too many processes")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = files[pid] = os.open(self._directory / name, flags, 0o600)
        return fd

    def close(self) -> None:
        """Idempotent."""
        for files in (self._files, self._lists):
            for fd in files.values():
                os.close(fd)
            files.clear()
