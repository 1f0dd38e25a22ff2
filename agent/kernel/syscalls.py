"""Thin wrappers of system calls the standard library lacks; each raises `OSError`."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from collections.abc import Sequence
from typing import Final

# include/uapi/asm-generic/unistd.h: the same number on every architecture
_NR_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint]
_fallocate = _libc.fallocate64
_fallocate.restype = ctypes.c_int
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t
_process_vm_readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
                              ctypes.c_ulong, ctypes.c_ulong]  # fmt: skip
_prctl = _libc.prctl
_prctl.restype = ctypes.c_int
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_connect = _libc.connect
_connect.restype = ctypes.c_int
_connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_getsockopt = _libc.getsockopt
_getsockopt.restype = ctypes.c_int
_getsockopt.argtypes = [ctypes.c_int] * 3 + [ctypes.c_char_p, ctypes.c_void_p]

# include/uapi/linux/tcp.h, 6.7: TCP_AO_INFO, struct tcp_ao_info_opt
_IPPROTO_TCP, _TCP_AO_INFO, _AO_INFO_SIZE = 6, 40, 56

MAX_VECTORS = 1024  # UIO_MAXIOV, include/uapi/linux/uio.h

# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_ioctl: Final = fcntl.ioctl
_unpack_int: Final = struct.Struct("=i").unpack


def pidfd_getfd(pidfd: int, target: int) -> int:
    """Duplicate descriptor `target` of another process into this one (close-on-exec).

    pidfd_getfd(2), Linux 5.6; needs PTRACE_MODE_ATTACH_REALCREDS over the process.
    """
    fd = _syscall(_NR_PIDFD_GETFD, pidfd, target, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
    return int(fd)


def connect_unspecified(fd: int) -> None:
    """connect(2) to an address of AF_UNSPEC: the socket forgets its connection."""
    if _connect(fd, bytes(16), 16) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"connect: {os.strerror(code)}")


def has_ao(fd: int) -> bool:
    """Whether a TCP socket has keys of the authentication option (RFC 5925).

    What the kernel reads from the buffer has to be zero, and socket.getsockopt() leaves it open.
    """
    value, size = ctypes.create_string_buffer(_AO_INFO_SIZE), ctypes.c_uint(_AO_INFO_SIZE)
    return bool(_getsockopt(fd, _IPPROTO_TCP, _TCP_AO_INFO, value, ctypes.byref(size)) == 0)


def ioctl_int(fd: int, request: int) -> int:
    """An ioctl that fills in one int."""
    value = bytearray(4)  # mutable: twice as fast as bytes
    _ioctl(fd, request, value)
    number: int = _unpack_int(value)[0]
    return number


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of it. Raises `OSError`."""
    data = memoryview(data)
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back the memory of a part of a file that has been read (fallocate(2))."""
    if _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fallocate: {os.strerror(code)}")


def readable(fd: int, seconds: float) -> bool:
    """Wait until there is something to read; whether there is. For any number, unlike select()."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def read_memory(pid: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """What another process has between these addresses, one after the other, in one call.

    At most `MAX_VECTORS` ranges. Ends before the first that cannot be read. Raises `OSError` where
    the process has gone, or is not ours to read.
    """
    size = sum(end - start for start, end in ranges)
    buffer = bytearray(size)
    ours = (ctypes.c_ulong * 2)(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), size)
    flat = [number for start, end in ranges for number in (start, end - start)]
    theirs = (ctypes.c_ulong * len(flat))(*flat)
    done = int(_process_vm_readv(pid, ours, 1, theirs, len(ranges), 0))
    if done < 0:
        code = ctypes.get_errno()
        if code != errno.EFAULT:
            raise OSError(code, f"process_vm_readv: {os.strerror(code)}")
        done = 0
    return bytes(memoryview(buffer)[:done])


def prctl(option: int, argument: int = 0, another: int = 0) -> None:
    """prctl(2) with up to two arguments."""
    if _prctl(option, argument, another, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl: {os.strerror(code)}")
