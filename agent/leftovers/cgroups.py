"""Which processes are in a frozen cgroup: freezer.state of v1, cgroup.freeze of v2."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agent.kernel import proc


class Freezers:
    """The mounts of the freezer, and what has been found frozen."""

    def __init__(self, top: Path) -> None:
        self._roots: dict[str, tuple[Path, str]] = {}  # hierarchy -> (mount point, its root)
        with contextlib.suppress(OSError):
            for line in proc.lines("/proc/self/mountinfo"):
                left, _, right = line.partition(" - ")
                fields, kind = left.split(" "), right.split(" ")
                point = Path(fields[4])
                if not point.is_relative_to(top):
                    continue
                if kind[0] == "cgroup2":
                    self._roots[""] = point, fields[3]
                elif kind[0] == "cgroup" and "freezer" in kind[2].split(","):
                    self._roots["freezer"] = point, fields[3]

    def frozen(self, pid: int) -> str:
        """The directory of the frozen cgroup that a process is in, "" where it is in none."""
        with contextlib.suppress(OSError):
            for line in proc.lines(f"/proc/{pid}/cgroup"):
                _, controllers, path = line.split(":", 2)
                for name in controllers.split(","):
                    if name in self._roots and (found := self._look(name, path)):
                        return found
        return ""

    def _look(self, hierarchy: str, path: str) -> str:
        point, root = self._roots[hierarchy]
        inside = os.path.relpath(path, root)
        directory = point if inside.startswith("..") else point / inside
        file, wanted = ("cgroup.freeze", "1") if not hierarchy else ("freezer.state", "FROZEN")
        while directory.is_relative_to(point):
            with contextlib.suppress(OSError):
                if (directory / file).read_text().strip() == wanted:
                    return str(directory)
            directory = directory.parent
        return ""


def command(directory: str) -> str:
    """What thaws it."""
    if Path(directory, "freezer.state").exists():
        return f"echo THAWED > {directory}/freezer.state"
    return f"echo 0 > {directory}/cgroup.freeze"
