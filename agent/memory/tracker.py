"""Which pages a running process writes to, told by the kernel.

A userfaultfd that write-protects asynchronously (Linux 6.7) marks a page as written and lets the
write go on: nobody waits for us. It belongs to the memory of whoever has opened it, so the process
is had to open it for us (`agent.kernel.inject`). When the last descriptor is closed, the kernel
forgets all of it; an agent that dies leaves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from agent.kernel import inject, pagemap, userfault
from agent.kernel.syscalls import pidfd_getfd

_NR_CLOSE = 3  # asm/unistd_64.h, as `inject` is for x86-64 alone
_NR_USERFAULTFD = userfault.NUMBERS["x86_64"]
_REGISTER = 0xC020AA00  # _IOWR(UFFDIO, 0x00, struct uffdio_register)
_REGISTER_ARGUMENT = struct.Struct("=QQQQ")  # start, len, mode, ioctls
_MODE_WP = 2
# UFFD_FEATURE_PAGEFAULT_FLAG_WP, _WP_UNPOPULATED, _WP_ASYNC
_FEATURES = 1 << 0 | 1 << 13 | 1 << 15


class Tracker:
    """The writes of one process, in the mappings that were given to `track`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """Raises `OSError` where the kernel or the process does not allow it."""
        self._fd = -1
        with inject.held(pid) as calls:
            flags = os.O_CLOEXEC | os.O_NONBLOCK | userfault.USER_MODE_ONLY
            theirs = calls.call(_NR_USERFAULTFD, flags)
            try:
                self._fd = pidfd_getfd(pidfd, theirs)
            finally:
                calls.call(_NR_CLOSE, theirs)
        try:
            userfault.greet(self._fd, _FEATURES)
        except BaseException:
            self.close()
            raise

    def track(self, start: int, end: int) -> bool:
        """Protect a mapping from now on; false where that cannot be."""
        argument = _REGISTER_ARGUMENT.pack(start, end - start, _MODE_WP, 0)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _REGISTER, argument)
            return True
        return False

    def written(
        self, pagemap_fd: int, start: int, end: int, *, protect: bool
    ) -> Iterator[tuple[int, int]]:
        """As `pagemap.written`. Raises `OSError` where any of it is not tracked."""
        return pagemap.written(pagemap_fd, start, end, protect=protect)

    def close(self) -> None:
        """The process is as before. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
