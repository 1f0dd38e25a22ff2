"""Limits that the agent raises for itself: a migration has a descriptor for each socket."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

_OPEN_FILES = "Max open files"  # proc_pid_limits(5)
_FEW = 3


def raise_descriptors() -> int:
    """Raise the limit of open files as far as it goes, for this process and what it starts.

    What a restored process had comes with its image. Returns the limit.
    """
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < most:
        with contextlib.suppress(ValueError, PermissionError):  # needs CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def descriptors(pid: int) -> int:
    """How many open files a process may have (its soft limit). Raises `OSError`.

    As prlimit(2) says it, which asks for more rights.
    """
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith(_OPEN_FILES):
            word = line[len(_OPEN_FILES) :].split()[0]
            return resource.RLIM_INFINITY if word == "unlimited" else int(word)
    return resource.RLIM_INFINITY


def has_room(pid: int, highest: int) -> bool:
    """Whether a process could open a few more, above descriptor `highest`."""
    limit = descriptors(pid)
    return limit == resource.RLIM_INFINITY or highest + _FEW < limit
