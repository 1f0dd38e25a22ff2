"""Looks at what a process has mapped: files it needs, and memory that cannot move."""

from __future__ import annotations

import contextlib
import os
import stat

from agent.kernel import proc
from agent.probe.descriptors import same_file
from agent.probe.files import GHOST_LIMIT, Files
from agent.probe.obstacles import Obstacles

# Memory under a name: shared anonymous memory, memfd_create(2), the ring of io_setup(2)
_MEMORY = ("/dev/zero", "/memfd:", "/[aio]", "/anon_hugepage")
_SHARED_STORAGE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "gfs2", "ocfs2", "lustre"})


def scan(pid: int, files: Files, obstacles: Obstacles) -> None:
    """Note the mapped files of one process. Raises `OSError`."""
    seen: set[tuple[str, int, bool]] = set()
    for mapping in proc.maps(pid):
        path = mapping.path
        if not path or path.startswith("[") and path != "[uprobes]":
            continue
        shared_writable = mapping.permissions[1] == "w" and mapping.permissions[3] == "s"
        key = (path, mapping.inode, shared_writable)
        if key in seen:
            continue
        seen.add(key)
        if path.startswith("/SYSV"):
            obstacles.mapping("sysv-memory", pid, what=path.removesuffix(proc.DELETED))
        elif not path.startswith("/") or path.startswith("/secretmem"):
            obstacles.mapping("mapping", pid, what=path)
        elif not path.startswith(_MEMORY):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # unmapped since
                _file(pid, mapping, shared_writable, files, obstacles)


def _file(
    pid: int, mapping: proc.Mapping, shared_writable: bool, files: Files, obstacles: Obstacles
) -> None:
    path = mapping.path
    found = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    if not stat.S_ISREG(found.st_mode):
        obstacles.mapping("mapping", pid, what=path)
    elif found.st_nlink == 0:
        if found.st_blocks * 512 > GHOST_LIMIT:
            path = path.removesuffix(proc.DELETED)
            obstacles.mapping("deleted-file", pid, path=path, mebibytes=found.st_blocks >> 11)
        files.add_place(path, pid, "place of a deleted mapping")
    elif path.endswith(proc.DELETED):
        obstacles.mapping("unlinked-file", pid, path=path.removesuffix(proc.DELETED))
    elif not same_file(path, found):
        obstacles.mapping("replaced-file", pid, path=path)
    elif shared_writable and proc.filesystem(found.st_dev) not in _SHARED_STORAGE:
        obstacles.mapping("shared-mapping", pid, path=path)
    else:
        files.add(path, pid, "mapped")
