"""Processes beside the agent: programs from the same code (a directory or the archive)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CODE = (
    "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)];"
    "from {module} import main; main()"
)


def command(module: str, arguments: Sequence[str]) -> tuple[list[str], list[int]]:
    """The command that runs `main` of a module, and the descriptors it needs."""
    root = sys.path[0]
    archive = [int(Path(root).name)] if root.startswith("/proc/self/fd/") else []
    root = root if archive else str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-c", _CODE.format(module=module), root, *arguments], archive


def start(
    module: str, arguments: Sequence[str], pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Run `main` of a module in a session of its own; it outlives us. Raises `OSError`."""
    words, archive = command(module, arguments)
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=(*pass_fds, *archive),
        start_new_session=True,
    )
