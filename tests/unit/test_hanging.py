"""Agents that live and do nothing: which are taken for dead, and by whom."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent import recovery
from agent.guardian import hangs
from agent.journal import Entry, History, Journal
from agent.kernel import proc
from agent.protocol import DESTINATION, SOURCE, Log
from agent.recovery import settle_when_free

ID = "20261124-120000-abcdef"
PLAN = {"plan": {"max_blackout": 10.0}}
LATE = 10.0 + 90.0 + 1.0


def history(role: str, *states: str) -> History:
    return History(ID, role, [Entry(state, 0.0, PLAN) for state in states])


@pytest.mark.parametrize(
    ("role", "states", "after", "taken_for_dead"),
    [
        (SOURCE, ("ready",), 1e6, False),  # nothing is touched; the orchestrator may take its time
        (SOURCE, ("ready", "locked", "frozen"), 50.0, False),
        (SOURCE, ("ready", "locked", "frozen"), LATE, True),
        (SOURCE, ("ready", "locked", "handed-over"), 50.0, False),
        (SOURCE, ("ready", "locked", "handed-over"), LATE, True),
        (SOURCE, ("ready", "locked", "handed-over", "in-doubt"), 1e6, False),
        (SOURCE, ("ready", "locked", "handed-over", "committed"), LATE, True),
        (DESTINATION, ("ready", "locked", "committed"), 2.0, False),
        (DESTINATION, ("ready", "locked", "committed"), 4.0, True),
        (DESTINATION, ("ready", "locked", "migrated"), LATE, True),  # it holds the journal's lock
    ],
)
def test_a_guardian_kills_what_takes_too_long(
    role: str, states: tuple[str, ...], after: float, taken_for_dead: bool
) -> None:
    assert hangs(history(role, *states), after) is taken_for_dead


def test_a_process_that_runs_again_leaves_its_agent_time_for_the_rest() -> None:
    committed = history(DESTINATION, "ready", "locked", "committed")
    committed.entries.append(Entry("", 1.0, {"resumed": True}))
    assert not hangs(committed, 50.0)
    assert hangs(committed, LATE)


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
