"""A seccomp filter for a child that is about to become CRIU: one question is answered at once.

For each descriptor in an epoll set CRIU asks by kcmp(2) whether it is the one that the set means,
and each time the kernel walks the set from its beginning: quadratic, 0.5 s for 10,000. Whoever has
compared the inodes himself has the answer: equal. Constants from include/uapi/linux/seccomp.h,
filter.h and audit.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
from collections.abc import Iterable

from agent.kernel import proc
from agent.kernel.epoll import KCMP_EPOLL_TFD, NR_KCMP
from agent.kernel.syscalls import prctl

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000  # the errno in the low bits; 0 is success
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
_NUMBER, _ARCH, _ARGUMENT_2 = 0, 4, 16 + 8 * 2  # offsets in struct seccomp_data, low word first
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_INSTRUCTION = struct.Struct("=HBBI")


def filtered(pids: Iterable[int]) -> bool:
    """Whether any thread of these processes has a seccomp filter of its own."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for tid in proc.threads(pid):
                if proc.status(pid, tid).get("Seccomp", "0") != "0":
                    return True
    return False


class EpollTrust:
    """The filter, made ahead; `install` runs in the child, between fork and exec."""

    def __init__(self) -> None:
        """Raises `OSError` where it is not known how."""
        machine = platform.machine()
        if machine not in _AUDIT_ARCH:
            raise OSError(f"no filter for {machine}")
        program = (
            (_LOAD, 0, 0, _ARCH),
            (_EQUAL, 0, 5, _AUDIT_ARCH[machine]),
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 3, NR_KCMP[machine]),
            (_LOAD, 0, 0, _ARGUMENT_2),
            (_EQUAL, 0, 1, KCMP_EPOLL_TFD),
            (_RETURN, 0, 0, _RET_ERRNO),
            (_RETURN, 0, 0, _RET_ALLOW),
        )
        self._code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*x) for x in program))
        # struct sock_fprog
        fields = struct.pack("@HP", len(program), ctypes.addressof(self._code))
        self._program = ctypes.create_string_buffer(fields, len(fields))

    def install(self) -> None:
        """For the calling thread and all that it starts; needs CAP_SYS_ADMIN."""
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(self._program))
