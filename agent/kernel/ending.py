"""How a process ended that need not be our child; as far as the kernel still knows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct

from agent.kernel import proc

# include/uapi/linux/pidfd.h: struct pidfd_info up to exit_code, its size in the ioctl's number
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3  # Linux 6.15; known once it has been waited for
UNKNOWN = "ended"


def how_ended(pid: int, pidfd: int) -> str:
    """As the rest of a sentence: "was killed by SIGKILL", "ended with exit status 1", or `UNKNOWN`.

    `pidfd` was opened before it had ended.
    """
    status = _of_zombie(pid)
    if status is None:
        status = _of_reaped(pidfd)
    if status is None:
        return UNKNOWN
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
        return f"was killed by signal {number}"
    return f"ended with exit status {os.WEXITSTATUS(status)}"


def _of_zombie(pid: int) -> int | None:
    """From exit_code in /proc/PID/stat, which whoever may trace it can read (proc_pid_stat(5))."""
    with contextlib.suppress(OSError, ValueError):
        if proc.stat(pid).state == "Z":
            return int(proc.read(f"/proc/{pid}/stat").rsplit(" ", 1)[1])
    return None


def _of_reaped(pidfd: int) -> int | None:
    """From the kernel's memory of it, which the pidfd keeps."""
    asked = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asked)
        mask, *_, status = _PIDFD_INFO.unpack(asked)
        if mask & _PIDFD_INFO_EXIT:
            return int(status)
    return None
