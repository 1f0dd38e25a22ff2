"""Mount namespaces and path lookup without symbolic links; each call raises `OSError`."""

from __future__ import annotations

import ctypes
import os
import struct

from agent.kernel import proc

# include/uapi/asm-generic/unistd.h: the same numbers on every architecture
_NR_OPENAT2 = 437  # Linux 5.6
_NR_MOUNT_SETATTR = 442  # Linux 5.12

_CLONE_NEWNS = 0x00020000  # include/uapi/linux/sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18  # include/uapi/linux/mount.h
_MOUNT_ATTR_RDONLY = 1
_AT_FDCWD = -100  # include/uapi/linux/fcntl.h
_RESOLVE_NO_SYMLINKS = 4  # include/uapi/linux/openat2.h
_OPEN_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_MOUNT_ATTR = struct.Struct(
    "=QQQQ"
)  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd

_libc = ctypes.CDLL(None, use_errno=True)
_unshare = _libc.unshare
_unshare.restype = ctypes.c_int
_unshare.argtypes = [ctypes.c_int]
_mount = _libc.mount
_mount.restype = ctypes.c_int
_mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def open_without_symlinks(path: str) -> int:
    """A descriptor (O_PATH) of a directory of which no part is a symbolic link: openat2(2)."""
    how = _OPEN_HOW.pack(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    arguments = (ctypes.c_int(_AT_FDCWD), os.fsencode(path), how, ctypes.c_size_t(len(how)))
    return _checked(_syscall(ctypes.c_long(_NR_OPENAT2), *arguments), f"openat2 {path}")


def leave_mounts() -> None:
    """A mount namespace of its own for this process, of which others see nothing."""
    _checked(_unshare(_CLONE_NEWNS), "unshare")
    _checked(_mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")


def bind(fd: int) -> None:
    """Have the directory, with what is mounted in it, as a mount of its own at its place."""
    place = b"/proc/self/fd/%d" % fd
    _checked(_mount(place, place, None, _MS_BIND | _MS_REC, None), "mount")


def make_read_only(path: str) -> None:
    """The mount at `path`, in this namespace."""
    attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (
        ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(0), attributes,
        ctypes.c_size_t(len(attributes)),
    )  # fmt: skip
    _checked(_syscall(ctypes.c_long(_NR_MOUNT_SETATTR), *arguments), f"mount_setattr {path}")


def mount_points() -> list[str]:
    """Where something is mounted, in this namespace; a place may be there twice."""
    return [
        os.fsdecode(_unescaped(line.split(" ", 5)[4]))
        for line in proc.lines("/proc/self/mountinfo")
    ]


def _unescaped(field: str) -> bytes:
    """Of mountinfo, where a blank is "\\040" (proc(5))."""
    return os.fsencode(field).decode("unicode_escape").encode("latin-1")
