"""Keep the kernel's scheduling hooks for breakpoints switched on during a migration.

CRIU stops the process it dumps or restores at a hardware breakpoint. The first perf event of a
task switches code in the scheduler on and waits for an RCU grace period, some 10 ms in which the
process stands still; a second after the last one it is switched off again (account_event() and
perf_sched_delayed() in kernel/events/core.c, since Linux 4.5). An event of our own, which counts
nothing, takes that wait ahead of the blackout.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

# asm/unistd.h
_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

# include/uapi/linux/perf_event.h
_PERF_TYPE_SOFTWARE = 1
_PERF_COUNT_SW_DUMMY = 9
_PERF_FLAG_FD_CLOEXEC = 8
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 0, 1 << 5, 1 << 6
# struct perf_event_attr, PERF_ATTR_SIZE_VER0: type, size, config, three words, flags, rest
_ATTRIBUTES = struct.Struct("=IIQQQQQ16x8x")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class Breakpoints:
    """Holds the event from the construction to `close`. Does nothing where it may not."""

    def __init__(self) -> None:
        self._fd = -1
        number = _NR_PERF_EVENT_OPEN.get(platform.machine())
        if number is None:
            return
        flags = _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HV
        attributes = ctypes.create_string_buffer(
            _ATTRIBUTES.pack(
                _PERF_TYPE_SOFTWARE, _ATTRIBUTES.size, _PERF_COUNT_SW_DUMMY, 0, 0, 0, flags
            ),
            _ATTRIBUTES.size,
        )
        this_task, any_cpu, no_group = 0, -1, -1
        self._fd = int(
            _syscall(
                ctypes.c_long(number),
                attributes,
                ctypes.c_int(this_task),
                ctypes.c_int(any_cpu),
                ctypes.c_int(no_group),
                ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
            )
        )

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
