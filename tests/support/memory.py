"""A process that does with its memory as it is told, and plays CRIU's part in a lazy restore.

`Subject` is the test's end. Run as a program this is the process: it connects to a socket and does
what comes from there, one thread a connection. It has nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, cast

PAGE = 4096
BASE = 0x10_0000_0000  # nothing else is mapped from here on
DEADLINE = 30.0  # seconds

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
_BOTH = PROT_READ | PROT_WRITE
_ANONYMOUS = 0x2 | 0x20 | 0x100000  # MAP_PRIVATE, _ANONYMOUS, _FIXED_NOREPLACE
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_GUARD_INSTALL = 4, 8, 21, 102

# include/uapi/linux/userfaultfd.h
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6  # FORK, REMAP, REMOVE, UNMAP
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_IO_SETUP = {"x86_64": 206, "aarch64": 0}
RESTORED = 0x52535446


def page(number: int, seed: int = 0) -> bytes:
    """What a page has, by its number: no two are equal, and none is zeros."""
    return struct.pack("=QQ", number + 1, seed) * (PAGE // 16)


def pages(first: int, count: int, seed: int = 0) -> bytes:
    return b"".join(page(number, seed) for number in range(first, first + count))


def address(number: int) -> int:
    """Of a page, by its number from `BASE` on."""
    return BASE + number * PAGE


def register_missing(fd: int, start: int, length: int) -> None:
    """Have a userfaultfd tell of pages that are touched and not there."""
    fcntl.ioctl(fd, _REGISTER, struct.pack("=QQQQ", start, length, 1, 0))


def until(condition: Any, what: str) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.002)


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A new directory on a tmpfs: other file systems have no file as large as addresses are."""
    path = Path(tempfile.mkdtemp(prefix="streamferry-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


# --- the test's end


class Subject:
    """The process, or a thread of it. Addresses are page numbers from `BASE` on."""

    def __init__(self, listener: Listener, connection: Connection[Any, Any], pid: int) -> None:
        self._listener = listener
        self._connection = connection
        self.pid = pid

    def begin(self, what: str, *arguments: Any) -> None:
        """Have it do something; `result` tells what came of it."""
        self._connection.send((what, arguments))

    def result(self) -> Any:
        """Raises `OSError` as it was raised there, `EOFError` where it has ended."""
        if not self._connection.poll(DEADLINE):
            raise AssertionError(f"process {self.pid} does not come to an end with it")
        done, value = self._connection.recv()
        if not done:
            raise OSError(value, os.strerror(value))
        return value

    def do(self, what: str, *arguments: Any) -> Any:
        self.begin(what, *arguments)
        return self.result()

    def thread(self) -> Subject:
        """Another thread of it."""
        self.do("thread")
        return self._next()

    def fork(self) -> Subject:
        """A child of it."""
        self.do("fork")
        return self._next()

    def execute(self) -> Subject:
        """It runs its program anew; this end of it is of no more use."""
        self.begin("execute")
        return self._next()

    def end(self) -> None:
        """It ends, and is nobody's zombie."""
        self.begin("exit")
        until(lambda: not os.path.exists(f"/proc/{self.pid}/maps") or self._is_zombie(), "its end")

    def _is_zombie(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def _next(self) -> Subject:
        connection = cast("Connection[Any, Any]", self._listener.accept())
        return Subject(self._listener, connection, connection.recv())

    def waits(self, thread: int) -> bool:
        """Whether that thread of it (by its TID) waits for the pager."""
        path = Path(f"/proc/{self.pid}/task/{thread}")
        return "userfault" in (path / "wchan").read_text() or "userfault" in (
            (path / "stack").read_text()
        )

    # what is done most

    def map(self, first: int, count: int, protection: int = _BOTH) -> None:
        self.do("map", address(first), count * PAGE, protection)

    def write(self, first: int, data: bytes) -> None:
        self.do("write", address(first), data)

    def read(self, first: int, count: int = 1) -> bytes:
        data: bytes = self.do("read", address(first), count * PAGE)
        return data

    def advise(self, first: int, count: int, advice: int) -> None:
        self.do("madvise", address(first), count * PAGE, advice)


@contextmanager
def subject() -> Iterator[Subject]:
    """A process; it, and what it has forked, ends with this."""
    with tempfile.TemporaryDirectory() as place:
        with Listener(f"{place}/socket", "AF_UNIX", backlog=16) as listener:
            listening = cast(Any, listener)._listener._socket
            listening.settimeout(DEADLINE)
            process = subprocess.Popen(
                [sys.executable, "-I", __file__, f"{place}/socket"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
            try:
                connection = cast("Connection[Any, Any]", listener.accept())
                yield Subject(listener, connection, connection.recv())
            finally:
                os.killpg(process.pid, 9)
                process.wait()


# --- the process


class _Process:
    def __init__(self, path: str) -> None:
        self._path = path
        self._libc = ctypes.CDLL(None, use_errno=True)
        for name in ("mmap", "mremap"):
            getattr(self._libc, name).restype = ctypes.c_void_p
        self._fd = -1
        self._criu: socket.socket | None = None

    def serve(self) -> None:
        connection = Client(self._path, "AF_UNIX")
        connection.send(os.getpid())
        while True:
            what, arguments = connection.recv()
            try:
                answer = True, getattr(self, what)(*arguments)
            except OSError as error:
                answer = False, error.errno
            connection.send(answer)

    def _call(self, name: str, *arguments: int) -> int:
        wide = [ctypes.c_void_p(one) for one in arguments]
        result = getattr(self._libc, name)(*wide)
        if result in (-1, (1 << 64) - 1):
            raise OSError(ctypes.get_errno(), name)
        return int(result or 0)

    # threads and processes

    def thread(self) -> None:
        threading.Thread(target=self.serve, daemon=True).start()

    def tid(self) -> int:
        return threading.get_native_id()

    def fork(self) -> None:
        if os.fork() == 0:
            os.closerange(3, 1024)  # the parent's connections end with the parent
            self.serve()

    def reap(self, pid: int) -> None:
        os.waitpid(pid, 0)

    def execute(self) -> None:
        os.execv(sys.executable, [sys.executable, "-I", __file__, self._path])

    def exit(self) -> None:
        os._exit(0)

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def background_io(self) -> None:
        """io_setup(2)."""
        context = ctypes.c_ulong(0)
        self._call("syscall", _IO_SETUP[platform.machine()], 1, ctypes.addressof(context))

    # memory; no call holds Python's lock while it waits

    def map(self, start: int, length: int, protection: int) -> None:
        self._call("mmap", start, length, protection, _ANONYMOUS, (1 << 64) - 1, 0)

    def munmap(self, start: int, length: int) -> None:
        self._call("munmap", start, length)

    def mprotect(self, start: int, length: int, protection: int) -> None:
        self._call("mprotect", start, length, protection)

    def madvise(self, start: int, length: int, advice: int) -> None:
        self._call("madvise", start, length, advice)

    def mlock(self, start: int, length: int) -> None:
        self._call("mlock", start, length)

    def mremap(self, old: int, length: int, longer: int, flags: int, new: int) -> None:
        self._call("mremap", old, length, longer, flags, new)

    def write(self, start: int, data: bytes) -> None:
        source = ctypes.create_string_buffer(data, len(data))
        self._call("memcpy", start, ctypes.addressof(source), len(data))

    def read(self, start: int, length: int) -> bytes:
        into = ctypes.create_string_buffer(length)
        self._call("memcpy", ctypes.addressof(into), start, length)
        return into.raw

    def send(self, start: int, length: int) -> int:
        """As `read`, but what is not there is an error (EFAULT), not the end of the process."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return self._call("write", ours.fileno(), start, length)

    # CRIU

    def register(self, ranges: list[tuple[int, int]]) -> None:
        if self._fd < 0:
            number = _USERFAULTFD[platform.machine()]
            self._fd = self._call("syscall", number, os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(self._fd, _API, struct.pack("=QQQ", 0xAA, _EVENTS, 0))
        for start, length in ranges:
            register_missing(self._fd, start, length)

    def connect(self, directory: str) -> None:
        self._criu = socket.socket(socket.AF_UNIX)
        self._criu.connect(f"{directory}/lazy-pages.socket")

    def give(self) -> None:
        """The descriptor, as CRIU gives it; then it is nobody's here."""
        assert self._criu is not None
        self._criu.sendall(struct.pack("=i", os.getpid()))
        socket.send_fds(self._criu, [b"\0"], [self._fd])
        os.close(self._fd)
        self._fd = -1

    def zombie(self, pid: int) -> None:
        assert self._criu is not None
        self._criu.sendall(struct.pack("=i", -pid))

    def finish(self, whole: bool = True) -> None:
        assert self._criu is not None
        if whole:
            self._criu.sendall(struct.pack("=I", RESTORED))
        self._criu.close()


if __name__ == "__main__":
    try:
        _Process(sys.argv[1]).serve()
    except (EOFError, ConnectionError):
        os._exit(errno.EPIPE)
