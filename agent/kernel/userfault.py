"""userfaultfd(2): give a process pages when it touches them. One wrapper an operation.

Numbers are from include/uapi/linux/userfaultfd.h. Whoever holds the descriptor holds up every
thread that touches a missing page; when the last one is closed, missing pages become zeros.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_API = 0xC018AA3F  # _IOWR(UFFDIO, 0x3f, struct uffdio_api)
_VERSION = 0xAA
_COPY = 0xC028AA03  # _IOWR(UFFDIO, 0x03, struct uffdio_copy)
_ZEROPAGE = 0xC020AA04
_WAKE = 0x8010AA02

# asm/unistd.h
NUMBERS = {"x86_64": 323, "aarch64": 282}

# UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP: what a process may do meanwhile
FEATURES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6

USER_MODE_ONLY = 1  # UFFD_USER_MODE_ONLY: what a user without privileges may open

PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16  # enum of uffd_event

_COPY_ARGUMENT = struct.Struct("=QQQQq")  # dst, src, len, mode, copy
_ZERO_ARGUMENT = struct.Struct("=QQQq")  # start, len, mode, zeropage
_API_ARGUMENT = struct.Struct("=QQQ")  # api, features, ioctls
_RANGE = struct.Struct("=QQ")
_MESSAGE = struct.Struct("=B7xQQQ")  # struct uffd_msg
_MESSAGES = 64  # read at once

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def attempt() -> None:
    """Open one as CRIU does for a process that it restores. Raises `OSError`."""
    number = NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fd = int(_libc.syscall(ctypes.c_long(number), ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        greet(fd, FEATURES)
    finally:
        os.close(fd)


def greet(fd: int, features: int) -> None:
    """Agree on the version and on what is to work. Raises `OSError` where something does not."""
    fcntl.ioctl(fd, _API, _API_ARGUMENT.pack(_VERSION, features, 0))


@dataclass(frozen=True, slots=True)
class Event:
    """A message; which of the numbers mean what depends on its kind.

    PAGEFAULT: flags, address. FORK: the child's descriptor. REMAP: from, to, length. REMOVE and
    UNMAP: start, end.
    """

    kind: int
    first: int
    second: int
    third: int


def events(fd: int) -> Iterator[Event]:
    """What has happened; nothing where nothing has. Whoever caused it goes on once it is read."""
    try:
        data = os.read(fd, _MESSAGE.size * _MESSAGES)
    except BlockingIOError:
        return
    for kind, first, second, third in _MESSAGE.iter_unpack(data):
        yield Event(kind, first, second, third)


class Busy(Exception):
    """The process's mappings are changing: read its events, then try again."""


class Gone(Exception):
    """The process has ended."""


def copy(fd: int, address: int, source: int, length: int) -> int:
    """Place `length` bytes from our memory at `source`; wakes who waits for them.

    Returns how many were placed before one that is there already. Raises `Busy`, `Gone`, `OSError`.
    """
    argument = bytearray(_COPY_ARGUMENT.pack(address, source, length, 0, 0))
    return _place(fd, _COPY, argument, length, _COPY_ARGUMENT)


def zero(fd: int, address: int, length: int) -> int:
    """As `copy`, with zeros."""
    argument = bytearray(_ZERO_ARGUMENT.pack(address, length, 0, 0))
    return _place(fd, _ZEROPAGE, argument, length, _ZERO_ARGUMENT)


def _place(fd: int, request: int, argument: bytearray, length: int, layout: struct.Struct) -> int:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        placed = int(layout.unpack(argument)[-1])
        if placed > 0:
            return placed
        if error.errno == errno.EEXIST:
            return 0
        if error.errno == errno.EAGAIN:
            raise Busy from None
        if error.errno in (errno.ESRCH, errno.ENOSPC):
            raise Gone from None
        raise
    return length


def wake(fd: int, address: int, length: int) -> None:
    """Have whoever waits for these pages try again."""
    fcntl.ioctl(fd, _WAKE, _RANGE.pack(address, length))
