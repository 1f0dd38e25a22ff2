"""What epoll sets of other processes watch, and how such a set is filled anew.

A set knows what it watches by file and number: numbers are those of the process that added it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from typing import NamedTuple

LINK = "anon_inode:[eventpoll]"  # of /proc/PID/fd
KCMP_EPOLL_TFD = 7  # include/uapi/linux/kcmp.h, since Linux 4.13
NR_KCMP = {"x86_64": 312, "aarch64": 272}  # asm/unistd.h

_CTL_ADD = 1  # include/uapi/linux/eventpoll.h
_EVENT = struct.Struct("=IQ" if platform.machine() == "x86_64" else "=I4xQ")  # packed there alone
_SLOT = struct.Struct("=III")  # struct kcmp_epoll_slot: efd, tfd, toff
# ep_show_fdinfo() in fs/eventpoll.c
_LINE = re.compile(
    r"^tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+) +pos:-?\d+ ino:([0-9a-f]+)", re.M
)

_libc = ctypes.CDLL(None, use_errno=True)
_epoll_ctl = _libc.epoll_ctl
_epoll_ctl.restype = ctypes.c_int
_epoll_ctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class Watch(NamedTuple):
    """One file in a set."""

    fd: int  # its number where it was added
    events: int  # EPOLL* bits
    data: int  # what epoll_wait(2) gives back
    inode: int


def watches(pid: int, fd: int) -> list[Watch]:
    """What the set behind a descriptor of a process watches. Raises `OSError`."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
        found = _LINE.findall(info.read())
    return [
        Watch(int(number), int(events, 16), int(data, 16), int(inode, 16))
        for number, events, data, inode in found
    ]


def is_watched(pid: int, epoll_fd: int, fd: int) -> bool:
    """Whether a set of a process watches the file that `fd` is in it, under this number (kcmp(2)).

    The kernel walks the set for it: not to be asked of many. Raises `OSError`.
    """
    number = NR_KCMP[platform.machine()]
    slot = ctypes.create_string_buffer(_SLOT.pack(epoll_fd, fd, 0), _SLOT.size)
    arguments = (pid, pid, KCMP_EPOLL_TFD, fd)
    result = _syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments), slot)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"kcmp: {os.strerror(code)}")
    return bool(result == 0)


def add(epoll_fd: int, fd: int, events: int, data: int) -> None:
    """epoll_ctl(2) with EPOLL_CTL_ADD and any data. Raises `OSError`."""
    if _epoll_ctl(epoll_fd, _CTL_ADD, fd, _EVENT.pack(events, data)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"epoll_ctl: {os.strerror(code)}")
