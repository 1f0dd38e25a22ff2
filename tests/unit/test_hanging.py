"""An agent in doubt that does nothing holds the journal: it is sent away, then killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent import recovery
from agent.history import History
from agent.journal import Journal
from agent.kernel import proc
from agent.protocol import SOURCE, Log
from agent.recovery import settle_when_free

ID = "20261124-120000-abcdef"
AGENT = """
import signal, sys, time
from pathlib import Path
from agent.journal import Journal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
journal = Journal.open(sys.argv[1], "source", Path(sys.argv[2]))
print("held", flush=True)
time.sleep(600)
"""


def test_an_agent_in_doubt_that_does_not_go_when_asked_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_GRACE", 0.2)
    journal = Journal.create(ID, SOURCE, tmp_path)
    journal.close()
    arguments = [sys.executable, "-c", AGENT, ID, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path.cwd()) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"held\n"
            # Whoever holds it writes; here it is its own agent that is said to hang.
            facts = {"plan": {}, "agent": agent.pid, "agent_born": proc.born(agent.pid)}
            with contextlib.closing(_of(journal.path)) as held:
                held.record("in-doubt", Log.DECISION, facts)
            monkeypatch.setattr(recovery, "Successor", lambda _: _Nothing())
            settled = settle_when_free(ID, SOURCE, None, 20.0, tmp_path)
            assert settled.state == "in-doubt"
            assert agent.wait() == -signal.SIGKILL
        finally:
            agent.kill()


def _of(path: Path) -> Journal:
    return Journal(path, os.open(path, os.O_RDWR), History(ID, SOURCE), 4)


class _Nothing:
    living: list[int] = []
