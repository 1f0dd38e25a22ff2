"""What has changed of the files that are brought, since a moment.

By the time of the last change (ctime), which nobody can set: st_ctime of stat(2) is the kernel's
clock at the last tick, so that a moment is taken some ticks early.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.kernel import proc
from agent.kernel.proc import DELETED
from agent.sync.sparse import Sparse, allocated, with_holes

_EARLY = 100_000_000  # nanoseconds
_BROUGHT = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment, by both clocks: the one that files have may be set meanwhile."""

    real: int = field(default_factory=time.time_ns)
    monotonic: int = field(default_factory=time.monotonic_ns)

    def earliest(self) -> int:
        """What changed after it has at least this ctime."""
        passed = time.monotonic_ns() - self.monotonic
        set_back = self.real + passed - time.time_ns()
        return self.real - max(set_back, 0) - _EARLY


@dataclass(slots=True)
class Changes:
    """Paths that have changed, and what was looked at for it."""

    paths: list[str] = field(default_factory=list)
    sparse: list[Sparse] = field(default_factory=list)  # of them those with holes
    left: list[str] = field(default_factory=list)  # sockets and devices: not brought
    bytes: int = 0  # of the files that have changed, whole but for holes
    largest: str = ""
    looked_at: int = 0
    total: int = 0  # bytes of all files
    _most: int = -1

    def add(self, path: str, found: os.stat_result, since: int) -> None:
        self.looked_at += 1
        if stat.S_IFMT(found.st_mode) not in _BROUGHT:
            self.left.append(path)
            return
        size = allocated(found) if stat.S_ISREG(found.st_mode) else 0
        self.total += size
        if found.st_ctime_ns >= since:
            self.paths.append(path)
            if (one := with_holes(path, found)) is not None:
                self.sparse.append(one)
            self.bytes += size
            if size > self._most:
                self._most, self.largest = size, path


def since(moment: Moment | None, dirs: Iterable[str], files: Iterable[str]) -> Changes:
    """What has changed in these directories, and of these files, since then (None: all)."""
    earliest = moment.earliest() if moment is not None else 0
    changes = Changes()
    for path in files:
        with contextlib.suppress(OSError):
            changes.add(path, os.lstat(path), earliest)
    for root in dirs:
        with contextlib.suppress(OSError):
            changes.add(root, os.lstat(root), earliest)
        for path, found in _below(root):
            changes.add(path, found, earliest)
    return changes


def _below(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is in a directory; what goes meanwhile is passed over."""
    waiting = [root]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                yield entry.path, found
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)


def opened(pids: Iterable[int]) -> set[str]:
    """Paths of the regular files that these processes have open or mapped. Quick: no content is
    looked at, so that it may be asked of processes that stand still."""
    links: dict[str, str] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd, link in proc.descriptors(pid).items():
                if link.startswith("/") and link not in links:
                    links[link] = f"/proc/{pid}/fd/{fd}"
            for one in proc.maps(pid):
                if one.path.startswith("/") and one.path not in links:
                    links[one.path] = one.path
    found = set()
    for link, at in links.items():
        if not link.endswith(DELETED) and not link.startswith(("/proc/", "/sys/", "/memfd:")):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.stat(at).st_mode):
                    found.add(link)
    return found
