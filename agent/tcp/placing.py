"""Put restored sockets into their places in a restored, stopped process.

CRIU can hand sockets on, but looks each up among all (see `agent.criu.sockets`). Here the process
is had to receive them (`agent.kernel.inject`), 253 with one call: the kernel gives what is received
the lowest free numbers, so all that are free below are filled up, and the fillers closed. What
epoll sets watch is added by a child of ours, in which the sockets have the same numbers.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import os
import platform
import signal
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import AgentError, ProtocolError
from agent.kernel import epoll, inject, limits
from agent.kernel.syscalls import pidfd_getfd

Row = Sequence[Any]  # descriptor, inode, close-on-exec

_AT_ONCE = 253  # SCM_MAX_FD, include/net/scm.h
# asm/unistd_64.h, as `inject` is for x86-64 alone
_NR_CLOSE, _NR_MMAP, _NR_MUNMAP, _NR_RECVMSG = 3, 9, 11, 47
_NR_SOCKETPAIR, _NR_FCNTL, _NR_CLOSE_RANGE = 53, 72, 436
_F_DUPFD_CLOEXEC = 1030  # include/uapi/linux/fcntl.h
_MSG_DONTWAIT, _MSG_CMSG_CLOEXEC = 0x40, 0x40000000
_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22
_SCRATCH = 1 << 13
_HEADER, _VECTOR, _BYTE, _CONTROL = 0, 64, 80, 128  # offsets in it
_MSGHDR = struct.Struct("=QI4xQQQQi4x")  # struct msghdr
_CMSGHDR = struct.Struct("=QII")  # struct cmsghdr: length with itself, level, type
_CONTROL_SIZE = 4096
_INT = struct.Struct("=i")
_MOST_DESCRIPTORS = 1 << 30  # the kernel's own limit is below (fs.nr_open)
_OTHER = 255  # exit status of a child that failed without an errno


class PlacingFailed(AgentError):
    code = "placing"
    template = "the sockets could not be given to process {pid}: {detail}"
    hint_template = "The process went on at the source; see `ulimit -n` of it, then try again."


def possible() -> bool:
    """Whether it is known how on this machine; both hosts are of one architecture."""
    return platform.machine() == "x86_64"


def place(pid: int, pidfd: int, rows: Iterable[Row], sockets: Mapping[int, socket.socket]) -> None:
    """Give a stopped process the sockets (by inode) under their numbers. Raises `PlacingFailed`."""
    wanted = {int(fd): (sockets[inode].fileno(), bool(cloexec)) for fd, inode, cloexec in rows}
    try:
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        if clash := taken & wanted.keys():
            raise PlacingFailed(pid=pid, detail=f"it has a descriptor {min(clash)}")
        if not limits.has_room(pid, max(wanted)):
            raise PlacingFailed(pid=pid, detail="its limit of open files leaves no room")
        with inject.held(pid, stopped=True) as calls, open(f"/proc/{pid}/mem", "r+b", 0) as memory:
            scratch = calls.call(_NR_MMAP, 0, _SCRATCH, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
            try:
                _Receiver(calls, memory.fileno(), scratch, pidfd).receive(wanted, taken)
            finally:
                calls.call(_NR_MUNMAP, scratch, _SCRATCH)
    except OSError as error:
        raise PlacingFailed(pid=pid, detail=error.strerror or str(error)) from error


class _Receiver:
    """The process's end of a pair of unix sockets."""

    def __init__(self, calls: inject.Calls, memory: int, scratch: int, pidfd: int) -> None:
        self._calls, self._memory, self._scratch, self._pidfd = calls, memory, scratch, pidfd

    def receive(self, wanted: Mapping[int, tuple[int, bool]], taken: set[int]) -> None:
        above = max(max(wanted), max(taken, default=0)) + 1
        theirs, ours = self._pair(above)
        try:
            with socket.socket(fileno=ours) as sender:
                self._fill(sender, theirs, wanted, taken)
        finally:
            self._calls.call(_NR_CLOSE, theirs)

    def _pair(self, above: int) -> tuple[int, int]:
        """Their end, moved out of the way, and ours."""
        call = self._calls.call
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        call(_NR_SOCKETPAIR, socket.AF_UNIX, kind, 0, self._scratch)
        low, other = struct.unpack("=ii", os.pread(self._memory, 8, self._scratch))
        try:
            theirs = call(_NR_FCNTL, low, _F_DUPFD_CLOEXEC, above)
            ours = pidfd_getfd(self._pidfd, other)
        finally:
            call(_NR_CLOSE, low)
            call(_NR_CLOSE, other)
        return theirs, ours

    def _fill(
        self,
        sender: socket.socket,
        theirs: int,
        wanted: Mapping[int, tuple[int, bool]],
        taken: set[int],
    ) -> None:
        """Everything free up to the highest number, in order: a socket, or a filler."""
        fillers = [fd for fd in range(max(wanted)) if fd not in wanted and fd not in taken]
        fds = sorted([*wanted, *fillers])
        filler = sender.fileno()
        for cloexec, run in itertools.groupby(fds, lambda fd: wanted.get(fd, (0, True))[1]):
            numbers = list(run)
            for start in range(0, len(numbers), _AT_ONCE):
                part = numbers[start : start + _AT_ONCE]
                sources = array.array("i", (wanted.get(fd, (filler,))[0] for fd in part))
                sender.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sources)])
                self._take(theirs, part, cloexec)
        for first, last in _ranges(fillers):
            self._calls.call(_NR_CLOSE_RANGE, first, last, 0)

    def _take(self, theirs: int, numbers: list[int], cloexec: bool) -> None:
        at = self._scratch
        header = _MSGHDR.pack(0, 0, at + _VECTOR, 1, at + _CONTROL, _CONTROL_SIZE, 0)
        vector = struct.pack("=QQ", at + _BYTE, 1)
        os.pwrite(self._memory, header.ljust(_VECTOR, b"\0") + vector, at + _HEADER)
        flags = _MSG_DONTWAIT | (_MSG_CMSG_CLOEXEC if cloexec else 0)
        self._calls.call(_NR_RECVMSG, theirs, at, flags)
        size = len(numbers) * _INT.size
        data = os.pread(self._memory, _CMSGHDR.size + size, at + _CONTROL)
        length, level, kind = _CMSGHDR.unpack_from(data)
        got = array.array("i", data[_CMSGHDR.size :]).tolist()
        rights = (_CMSGHDR.size + size, socket.SOL_SOCKET, socket.SCM_RIGHTS)
        if (length, level, kind) != rights or got != numbers:
            raise OSError(0, f"descriptor {numbers[0]} became {got[0]}")


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of ascending numbers."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]


def watch(
    pidfd: int, epoll_fd: int, rows: Iterable[Row], sockets: Mapping[int, socket.socket]
) -> None:
    """Add sockets (by inode) to a set of another process, under that process's numbers.

    `rows`: number, EPOLL* bits, data, inode. What the set watches already is no error. Raises
    `OSError`.
    """
    ours = pidfd_getfd(pidfd, epoll_fd)
    try:
        child = os.fork()
        if child == 0:
            os._exit(_add_all(ours, list(rows), sockets))
        _, status = os.waitpid(child, 0)
    finally:
        os.close(ours)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(max(code, 0), os.strerror(code) if code > 0 else "its child was killed")


def _add_all(epoll_fd: int, rows: list[Row], sockets: Mapping[int, socket.socket]) -> int:
    """In a child, whose descriptors are its own: an errno, or 0."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        where = {inode: sockets[inode].fileno() for _, _, _, inode in rows}
        at = {fd: inode for inode, fd in where.items()}
        above = max(max(at), *(row[0] for row in rows), epoll_fd) + 1
        epoll_fd = fcntl.fcntl(epoll_fd, fcntl.F_DUPFD_CLOEXEC, above)
        for fd, events, data, inode in rows:
            if (now := where[inode]) != fd:
                if fd in at:  # one that is still to be moved itself
                    other = at.pop(fd)
                    where[other] = os.dup(fd)
                    at[where[other]] = other
                os.dup2(now, fd)
                os.close(now)
                del at[now]
                at[fd] = inode
            try:
                epoll.add(epoll_fd, fd, events, data)
            except FileExistsError:
                pass  # the set is shared by processes that have the socket under one number
    except OSError as error:
        return error.errno or _OTHER
    except BaseException:
        return _OTHER
    return 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where the sockets of a tree are, and which epoll sets watch them."""

    places: list[tuple[int, list[Row]]]  # PID; descriptor, inode, close-on-exec
    watched: list[tuple[int, int, list[Row]]]  # PID, descriptor; fd, EPOLL* bits, data, inode

    @classmethod
    def from_wire(cls, record: Mapping[str, Any]) -> Places:
        """From {"places": ..., "watched": ...}. Raises `ProtocolError`."""
        places, watched = record.get("places"), record.get("watched")
        if not isinstance(places, list) or not isinstance(watched, list):
            raise ProtocolError(detail="places without what is watched")
        for one in places:
            match one:
                case [int(), list(rows)] if rows and all(map(_is_place, rows)):
                    continue
            raise ProtocolError(detail="a malformed place of sockets")
        for one in watched:
            match one:
                case [int(), int(), list(rows)] if rows and all(map(_is_watch, rows)):
                    continue
            raise ProtocolError(detail="a malformed epoll set")
        return cls([(pid, rows) for pid, rows in places], [(*one,) for one in watched])

    def check(self, inodes: Collection[int]) -> None:
        """Raises `ProtocolError` unless these, all of them and no others, have their place."""
        placed = {row[1] for _, rows in self.places for row in rows}
        watched = {row[3] for _, _, rows in self.watched for row in rows}
        if placed != set(inodes) or not watched <= placed:
            raise ProtocolError(detail="the sockets and their places differ")

    def fill(self, pidfds: Mapping[int, int], sockets: Mapping[int, socket.socket]) -> None:
        """In the restored tree, which is stopped. Raises `PlacingFailed`."""
        for pid, rows in self.places:
            if pid not in pidfds:
                raise PlacingFailed(pid=pid, detail="it is not there")
            place(pid, pidfds[pid], rows, sockets)
        for pid, epoll_fd, rows in self.watched:
            if pid not in pidfds:
                raise PlacingFailed(pid=pid, detail="it is not there")
            try:
                watch(pidfds[pid], epoll_fd, rows, sockets)
            except OSError as error:
                detail = f"epoll set {epoll_fd}: {error.strerror}"
                raise PlacingFailed(pid=pid, detail=detail) from error


def _is_place(row: object) -> bool:
    match row:
        case [int(fd), int(), bool()] if 0 <= fd < _MOST_DESCRIPTORS:
            return True
    return False


def _is_watch(row: object) -> bool:
    match row:
        case [int(fd), int(events), int(data), int()]:
            return 0 <= fd < _MOST_DESCRIPTORS and 0 <= events < 1 << 32 and 0 <= data < 1 << 64
    return False
