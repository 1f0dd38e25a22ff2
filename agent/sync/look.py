"""What the check asks of a host for `--sync`: rsync, and the paths themselves."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from typing import TypedDict

from agent.errors import ProtocolError, shown
from agent.kernel import proc
from agent.probe.files import kind_of
from agent.sync import rsync
from agent.sync.child import find
from agent.sync.paths import MAX_PATH, MAX_PATHS

_PATIENCE = 10.0  # seconds for rsync to say its version


class SyncPath(TypedDict):
    path: str
    real: str  # without symbolic links
    kind: str  # "file", "directory", "missing", or what else it is


class SyncFacts(TypedDict):
    rsync: str | None  # what is wrong with it
    paths: list[SyncPath]


def checked(paths: object) -> list[str]:
    """Paths that came from elsewhere. Raises `ProtocolError`."""
    if not isinstance(paths, list) or len(paths) > MAX_PATHS:
        raise ProtocolError(detail="paths to bring that are none, or too many")
    for path in paths:
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise ProtocolError(detail=f"{shown(path)} is not a path to bring")
        if len(path) > MAX_PATH:
            raise ProtocolError(detail=f"{shown(path)} is too long for a path to bring")
    return paths


def look(paths: Sequence[str]) -> SyncFacts:
    """Raises `ProtocolError` for what cannot be a path."""
    try:
        return SyncFacts(rsync=_rsync(), paths=[_path(one) for one in paths])
    except ValueError as error:  # a surrogate that is no byte
        raise ProtocolError(detail=f"a path to bring: {error!s:.200}") from error


def _rsync() -> str | None:
    program = find()
    if program is None:
        return "it is not installed"
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env=rsync.ENVIRONMENT,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be run: {error}"
    return rsync.version_problem(done.stdout)


def _path(path: str) -> SyncPath:
    real = proc.printable(os.path.realpath(path))
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return SyncPath(path=path, real=real, kind="missing")
    except OSError as error:
        return SyncPath(path=path, real=real, kind=error.strerror or "unreadable")
    kind = "link" if stat.S_ISLNK(found.st_mode) else kind_of(found.st_mode)
    return SyncPath(path=path, real=real, kind=kind)
