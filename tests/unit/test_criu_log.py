"""What is told of CRIU's log."""

from __future__ import annotations

from agent.criu.worker import errors

_KILLED = """\
(00.000101) Warn  (criu/kerndat.c:1153): $XDG_RUNTIME_DIR not set
(00.011532) Error (criu/rlimit.c:17): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.304211) Error (criu/cr-restore.c:1262): 4711 killed by signal 9: Killed
(00.304260) Error (criu/cr-restore.c:2077): Restoring FAILED.
"""  # noqa: E501


def test_the_first_error_that_matters() -> None:
    assert errors(_KILLED) == ["4711 killed by signal 9: Killed", "Restoring FAILED."]


def test_no_error() -> None:
    assert errors("") == errors(_KILLED.splitlines()[0]) == []
