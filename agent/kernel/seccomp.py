"""A seccomp filter for a child that is about to become CRIU: what it asks is answered by us.

For each descriptor in an epoll set CRIU asks by kcmp(2) whether it is the one that the set means,
and each time the kernel walks the set from its beginning: quadratic, 0.5 s for 10,000. Whoever has
compared the inodes himself has the answer: equal. And which pages a mapping has it asks by
PAGEMAP_SCAN; that may wait for an answer of ours (`agent.criu.hiding`). Constants from
include/uapi/linux/seccomp.h, filter.h and audit.h.
"""

from __future__ import annotations

import array  # noqa: F401 - send_fds() would import it in the child
import contextlib
import ctypes
import fcntl
import platform
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from agent.kernel import proc
from agent.kernel.epoll import KCMP_EPOLL_TFD, NR_KCMP
from agent.kernel.pagemap import SCAN
from agent.kernel.syscalls import prctl

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_NR_SECCOMP = {"x86_64": 317, "aarch64": 277}  # asm/unistd.h
_NR_IOCTL = {"x86_64": 16, "aarch64": 29}
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000  # the errno in the low bits; 0 is success
_RET_USER_NOTIF = 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, low word first
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_INSTRUCTION = struct.Struct("=HBBI")

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_ID_VALID = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_NOTICE = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def filtered(pids: Iterable[int]) -> bool:
    """Whether any thread of these processes has a seccomp filter of its own."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for tid in proc.threads(pid):
                if proc.status(pid, tid).get("Seccomp", "0") != "0":
                    return True
    return False


def may_filter(pids: Iterable[int]) -> bool:
    """Whether CRIU can have a `Filter` and dump these processes; and it is known how, here."""
    return platform.machine() in _AUDIT_ARCH and not filtered(pids)


class Filter:
    """The filter, made ahead; `install` runs in the child, between fork and exec."""

    def __init__(self, *, trust_epoll: bool = False, scans: bool = False) -> None:
        """`scans`: they wait for whoever has the `listener`. Only where one `may_filter`."""
        self._machine = machine = platform.machine()
        self._plain = _Program(machine, trust_epoll=trust_epoll, scans=False)
        self._asking = _Program(machine, trust_epoll=trust_epoll, scans=True) if scans else None
        self._ours, self._theirs = socket.socketpair()

    def install(self) -> None:
        """For the calling thread and all that it starts; needs CAP_SYS_ADMIN."""
        if self._asking is not None:
            number, program = _NR_SECCOMP[self._machine], ctypes.c_void_p(self._asking.address)
            fd = _syscall(ctypes.c_long(number), _SET_MODE_FILTER, _NEW_LISTENER, program)
            if fd >= 0:  # else there is one already, of a container's runtime
                socket.send_fds(self._theirs, [b"\0"], [fd])
                return
        with contextlib.suppress(OSError):  # then the kernel answers all
            prctl(_PR_SET_SECCOMP, _MODE_FILTER, self._plain.address)

    def listener(self) -> int | None:
        """Where its scans are told, once the child is there; None where they are not. For once."""
        with self._ours, self._theirs:
            self._ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                _, (fd,), _, _ = socket.recv_fds(self._ours, 1, 1)
                return fd
        return None


class _Program:
    """struct sock_fprog."""

    def __init__(self, machine: str, *, trust_epoll: bool, scans: bool) -> None:
        rules = []
        if trust_epoll:
            rules.append((NR_KCMP[machine], 2, KCMP_EPOLL_TFD, _RET_ERRNO))
        if scans:
            rules.append((_NR_IOCTL[machine], 1, SCAN, _RET_USER_NOTIF))
        code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 0, 5 * len(rules), _AUDIT_ARCH[machine])]
        for number, argument, value, action in rules:
            code += [
                (_LOAD, 0, 0, _NUMBER),
                (_EQUAL, 0, 3, number),
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_EQUAL, 0, 1, value),
                (_RETURN, 0, 0, action),
            ]
        code.append((_RETURN, 0, 0, _RET_ALLOW))
        self._code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*x) for x in code))
        fields = struct.pack("@HP", len(code), ctypes.addressof(self._code))
        self._fields = ctypes.create_string_buffer(fields, len(fields))
        self.address = ctypes.addressof(self._fields)


class Notice(NamedTuple):
    """A call that waits for an answer."""

    id: int
    pid: int
    arguments: tuple[int, ...]


def receive(listener: int) -> Notice:
    """The next; waits for it. Raises `OSError`, also where whoever asked has gone."""
    found = bytearray(_NOTICE.size)
    fcntl.ioctl(listener, _RECEIVE, found)
    number, pid, _, _, _, _, *arguments = _NOTICE.unpack(found)
    return Notice(number, pid, tuple(arguments))


def waits(listener: int, notice: Notice) -> bool:
    """Whether the call still waits, so that its PID is whom we think."""
    try:
        fcntl.ioctl(listener, _ID_VALID, notice.id.to_bytes(8, "little"))
    except OSError:
        return False
    return True


def answer(listener: int, notice: Notice, value: int | None) -> None:
    """Have the call return `value`; None: let the kernel do it. Raises `OSError`."""
    flags = _CONTINUE if value is None else 0
    fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(notice.id, value or 0, 0, flags)))
