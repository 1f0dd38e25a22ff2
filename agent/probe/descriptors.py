"""Sorts the open descriptors of a process: files, pipes, sockets, and what cannot move."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.kernel import proc
from agent.kernel.syscalls import pidfd_getfd
from agent.probe.files import GHOST_LIMIT, Files
from agent.probe.obstacles import Obstacles

# What CRIU 4.2 dumps of anonymous inodes (criu/files.c); BPF maps only where it was built so.
_ANONYMOUS = frozenset({"eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd"})

_MEMORY_MAJOR = 1  # Documentation/admin-guide/devices.txt
_MEMORY_MINORS = frozenset({3, 5, 7, 8, 9})  # null, zero, full, random, urandom
# tty and ttyS, tty and console and ptmx, pts, serial lines, hvc
_TERMINAL_MAJORS = frozenset({4, 5, *range(136, 144), 204, 229})


class Descriptor(NamedTuple):
    pid: int
    fd: int


@dataclass
class Pipe:
    """One pipe or FIFO: the descriptors the tree has of each end."""

    readers: list[Descriptor] = field(default_factory=list)
    writers: list[Descriptor] = field(default_factory=list)


class Descriptors:
    """The descriptors of a tree."""

    def __init__(self, pids: list[int], files: Files, obstacles: Obstacles) -> None:
        self._tree = frozenset(pids)
        self._files = files
        self._obstacles = obstacles
        self.sockets: dict[int, Descriptor] = {}  # inode -> one descriptor
        self.pipes: dict[str, Pipe] = {}  # link -> ends

    def scan(self, pid: int) -> int:
        """Look at those of one process; returns the highest + 1. Raises `OSError`."""
        mounts = proc.mount_ids(pid)
        found = proc.descriptors(pid)
        for fd, link in found.items():
            if link.startswith("socket:["):
                self.sockets.setdefault(int(link[8:-1]), Descriptor(pid, fd))
            else:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # closed since
                    self._other(Descriptor(pid, fd), link, mounts)
        return max(found, default=-1) + 1

    def _other(self, at: Descriptor, link: str, mounts: set[int]) -> None:
        if link.startswith("pipe:["):
            self._pipe(at, link)
        elif link.startswith("/"):
            self._path(at, link, mounts)
        elif link.startswith("pidfd:") or link == "anon_inode:[pidfd]":
            target = int(proc.fdinfo(*at).get("Pid", "0"))
            if target != -1 and target not in self._tree:
                self._refuse("descriptor", at, what=f"a pidfd of process {target}, which stays")
        else:
            name = link.removeprefix("anon_inode:").strip("[]")
            if not link.startswith("anon_inode:") or name not in _ANONYMOUS:
                self._refuse("descriptor", at, what=link)

    def _refuse(self, code: str, at: Descriptor, **fields: str | int) -> None:
        self._obstacles.descriptor(code, at.pid, at.fd, **fields)

    def _pipe(self, at: Descriptor, link: str) -> None:
        flags = int(proc.fdinfo(*at)["flags"], 8)
        if flags & os.O_DIRECT:
            self._refuse("descriptor", at, what="a pipe in packet mode")
        pipe = self.pipes.setdefault(link, Pipe())
        mode = flags & os.O_ACCMODE
        if mode in (os.O_RDONLY, os.O_RDWR):
            pipe.readers.append(at)
        if mode in (os.O_WRONLY, os.O_RDWR):
            pipe.writers.append(at)

    def _path(self, at: Descriptor, link: str, mounts: set[int]) -> None:
        if link.startswith("/memfd:"):
            return
        found = os.stat(f"/proc/{at.pid}/fd/{at.fd}")
        info = proc.fdinfo(*at)
        if self._is_device(at, link, found):
            return
        if int(info["mnt_id"]) not in mounts:
            self._refuse("foreign-mount", at, path=link)
        elif link.startswith("/proc/"):
            self._proc_file(at, link)
        elif stat.S_ISLNK(found.st_mode):
            pass  # opened with O_PATH and O_NOFOLLOW; it has no content to compare
        elif found.st_nlink == 0:
            if found.st_blocks * 512 > GHOST_LIMIT:
                self._refuse(
                    "deleted-file",
                    at,
                    path=link.removesuffix(proc.DELETED),
                    mebibytes=found.st_blocks >> 11,
                )
            self._files.add_place(link, at.pid, f"place of the deleted descriptor {at.fd}")
        elif link.endswith(proc.DELETED):
            self._refuse("unlinked-file", at, path=link.removesuffix(proc.DELETED))
        elif not same_file(link, found):
            self._refuse("replaced-file", at, path=link)
        else:
            flags = int(info["flags"], 8)
            mode = flags & os.O_ACCMODE
            log = mode == os.O_WRONLY and bool(flags & os.O_APPEND)
            self._files.add(
                link,
                at.pid,
                f"descriptor {at.fd}",
                sized=not log and not link.startswith("/sys/"),
                content=mode != os.O_RDONLY and not log,
                written=mode != os.O_RDONLY,
            )
            if stat.S_ISFIFO(found.st_mode):
                self._pipe(at, link)

    def _is_device(self, at: Descriptor, link: str, found: os.stat_result) -> bool:
        """Whether it is a device; the harmless ones need only be present."""
        if not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            return False
        major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        if stat.S_ISCHR(found.st_mode) and major in _TERMINAL_MAJORS:
            self._refuse("terminal", at, path=link)
        elif stat.S_ISBLK(found.st_mode) or major != _MEMORY_MAJOR or minor not in _MEMORY_MINORS:
            self._refuse("device", at, path=link)
        else:
            self._files.add(link, at.pid, f"descriptor {at.fd}")
        return True

    def _proc_file(self, at: Descriptor, link: str) -> None:
        owner = link.split("/")[2].removesuffix(proc.DELETED)
        if not owner.isdecimal():
            self._files.add(link, at.pid, f"descriptor {at.fd}", sized=False)
        elif int(owner) not in self._tree:
            self._refuse("descriptor", at, what=f"{link}, of a process that stays")

    def check_pipes(self, holders: dict[str, proc.Holder], pidfds: dict[int, int]) -> None:
        """Refuse the pipes with an end outside of the tree. Raises `OSError`."""
        for link, pipe in self.pipes.items():
            at = (pipe.writers or pipe.readers)[0]
            holder = holders.get(link)
            if holder is not None:
                other = f"process {holder.pid} ({holder.comm})"
            elif pipe.readers and pipe.writers or not _other_end_open(at, pidfds):
                continue
            else:
                other = "a process that cannot be seen from here"
            self._refuse("pipe-outside", at, path=link, other=other)


def same_file(path: str, found: os.stat_result) -> bool:
    """Whether `path` leads to the file that `found` describes."""
    try:
        here = os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (found.st_dev, found.st_ino)


def _other_end_open(at: Descriptor, pidfds: dict[int, int]) -> bool:
    """Whether anyone has the other end of a pipe of which the tree has but one (pipe(7))."""
    try:
        copy = pidfd_getfd(pidfds[at.pid], at.fd)
    except PermissionError:
        raise
    except (OSError, KeyError):
        return False  # closed since
    try:
        poll = select.poll()
        poll.register(copy, 0)
        return not poll.poll(0)  # POLLHUP: no writer, POLLERR: no reader
    finally:
        os.close(copy)
