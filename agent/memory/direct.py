"""Whether a device may write to the memory of a process without the page tables' knowing.

A read past the page cache (O_DIRECT), or one that goes on in the background (AIO), has its pages
pinned: they change when the device is done, also where they were write-protected meanwhile.
"""

from __future__ import annotations

import contextlib
import os

from agent.kernel import proc

_AIO = "/[aio]"  # fs/aio.c; the ring of a context is a mapping of this name


def written_by_devices(pid: int) -> bool:
    """Raises `OSError` where the process has gone."""
    if any(one.path.startswith(_AIO) for one in proc.maps(pid)):
        return True
    for fd, target in proc.descriptors(pid).items():
        if target.startswith("/"):  # a pipe has another use for the flag
            with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
                if int(proc.fdinfo(pid, fd)["flags"], 8) & os.O_DIRECT:
                    return True
    return False
