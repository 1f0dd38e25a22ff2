"""Outlives the agent of a migration, and ends for it what it left: one small process a host.

It is started before anything is touched, waits on a pipe that only the agent holds, and looks into
the journal when that breaks. An agent that hangs with the process frozen is killed first: after
`plan.max_blackout` and a time for its own undoing, where the table lets this host act alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from pathlib import Path

from agent import offspring
from agent.history import History
from agent.journal import DIRECTORY, read
from agent.protocol import SOURCE, TABLES, Found

_LOOK = 1.0  # seconds between looks into the journal of an agent that lives
_UNLOCKED = 180.0  # seconds until the lock: the two agents are told to run within moments
_SLACK = 90.0  # seconds over the blackout: an undo waits up to a minute for CRIU
_RELEASE = 3.0  # seconds from the commit to the process running
_END = 30.0  # seconds from the commit to the end of it all
_PATIENCE = 60.0  # seconds for what fails, or for somebody else who holds the journal
_AGAIN = 0.5  # seconds between tries
_DISMISSED = b"d"


class Guardian:
    """The agent's end: `dismiss` when all is over, else it is taken for dead."""

    def __init__(self, migration_id: str, role: str, directory: Path = DIRECTORY) -> None:
        """Start it. Raises `OSError`."""
        watched, self._pipe = os.pipe()
        arguments = [migration_id, role, str(directory), str(watched), str(os.getpid())]
        try:
            self._process = offspring.start("agent.guardian", arguments, [watched])
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(watched)

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        """It is not needed any more. Idempotent."""
        if self._pipe < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._pipe, _DISMISSED)
        self.leave()

    def leave(self) -> None:
        """Let it go by what the journal says now."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def main() -> None:
    """Arguments: migration, role, journals' directory, descriptor to watch, the agent's PID."""
    migration_id, role, directory, watched, agent = sys.argv[1:]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Its parent may be gone already: then the pipe is broken, and nobody is killed.
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(int(agent))
        if _watch(Path(directory), migration_id, role, int(watched), pidfd):
            return
    _take_over(Path(directory), migration_id, role)


def _watch(directory: Path, migration_id: str, role: str, watched: int, pidfd: int) -> bool:
    """Wait for the agent's end, or end it; whether the guardian was dismissed."""
    patience = Patience()
    while True:
        ready = select.select([watched], [], [], _LOOK)[0]
        if ready:
            return os.read(watched, 1) == _DISMISSED
        with contextlib.suppress(Exception):  # a look that fails is followed by another
            history = read(directory / f"{migration_id}-{role}", migration_id, role)
            if not patience.is_over(history, time.monotonic()):
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
            return False


class Patience:
    """Tells when an agent takes longer than any that is well. No I/O.

    Each stage is timed from when it is first seen: the journal's own times are those of a clock
    that can be set.
    """

    def __init__(self) -> None:
        self._stage, self._since = "", 0.0

    def is_over(self, history: History, now: float) -> bool:
        """`now`: seconds of a clock that is never set."""
        stage, limit = stage_of(history)
        if stage != self._stage:
            self._stage, self._since = stage, now
        return now - self._since > limit


def stage_of(history: History) -> tuple[str, float]:
    """What an agent is at, and the seconds in which any that is well gets beyond it."""
    table = TABLES[history.role]
    told = f"{len(history.entries)} records"  # it notes that it gets on, where that may take long
    if table.states[history.state].found is Found.ASK and history.state not in table.silence:
        return "in doubt", math.inf
    if history.role == SOURCE and history.state == "handed-over" and "serving" in history.facts:
        return f"serving, {told}", _END
    if history.entered("committed") is not None or history.entered("running") is not None:
        running = history.role == SOURCE or "resumed" in history.facts
        return (f"ending, {told}", _END) if running else ("releasing", _RELEASE)
    if history.entered("locked") is not None:
        return "blackout", float(history.facts["plan"]["max_blackout"]) + _SLACK
    return f"preparing, {told}", _UNLOCKED


def _take_over(directory: Path, migration_id: str, role: str) -> None:
    from agent.journal import JournalBusy
    from agent.recovery import settle

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            settle(migration_id, role, None, directory)
            return
        except JournalBusy:  # `migrate recover` was first, or the agent is not quite gone
            time.sleep(0.01)
        except Exception:  # all may be done twice, and nobody else is here to do it
            time.sleep(_AGAIN)


if __name__ == "__main__":
    main()
