"""The command `migrate` as an operator runs it: a process of its own, with --json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.chaos.errors import ActionFailed

_CODE = Path(orchestrator.__file__).resolve().parents[1]  # the same code as this process
_PATIENCE = 200.0  # seconds


@dataclass
class Ended:
    """What one run of the command came to; killed, it has said nothing, and `result` is empty."""

    status: int
    result: dict[str, Any]
    stderr: str
    started: float  # CLOCK_MONOTONIC
    ended: float


class Command:
    """Starts it, with records of migrations in a directory of their own."""

    def __init__(self, ssh_config: Path, state: str) -> None:
        self._ssh_config, self._state = ssh_config.resolve(), state

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """With the ssh configuration, and --json."""
        return self.spawn("-F", str(self._ssh_config), "--json", *arguments)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """With these arguments alone."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_CODE,
            env={**os.environ, "XDG_STATE_HOME": self._state},
            start_new_session=True,  # Ctrl-C is for whoever has started this, who then ends it
        )

    def end(self, process: subprocess.Popen[str], patience: float = _PATIENCE) -> Ended:
        """Await it. Raises `subprocess.TimeoutExpired`, and `ActionFailed` where it has not kept to
        one line of JSON."""
        started = time.monotonic()
        output, errors = process.communicate(timeout=patience)
        if process.returncode != -signal.SIGKILL and output.count("\n") != 1:
            raise ActionFailed(detail=f"not one line of JSON: {output!r} {errors!r}")
        result = json.loads(output or "{}")
        return Ended(process.returncode, result, errors, started, time.monotonic())

    def run(self, *arguments: str) -> Ended:
        return self.end(self.start(*arguments))
