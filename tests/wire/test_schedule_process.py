"""`migrate schedule serve` as a process that is killed: each due run is run exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.scheduling.store import Run, Store, server_of
from tests.support.schedules import NOON

ROOT = Path(__file__).resolve().parents[2]
RATE = 120.0  # a minute is half a second
# As a drain it has a journal of its own under the id that it is given, and goes on by that.
RUNNER = """#!/bin/sh
exec 9>> "$JOURNALS/$3"
flock 9
test -s "$JOURNALS/$3" || echo begin >&9
test -z "$HOLD" || exec sleep 60
sleep 0.2
grep -q end "$JOURNALS/$3" || echo end >&9
"""


class Serving:
    def __init__(self, directory: Path) -> None:
        self.store, self.book = directory / "schedule.db", directory / "minutely.yaml"
        self.journals = directory / "journals"
        self.journals.mkdir()
        self.runner = directory / "runner"
        self.runner.write_text(RUNNER)
        self.runner.chmod(0o755)
        self.begin = time.time()
        self.processes: list[subprocess.Popen[str]] = []
        self.write(cron="* * * * *", overlap="wait", grace="10h")

    def write(self, **schedule: str) -> None:
        drains = [{"node": "src", "to": ["dst"]}]
        self.book.write_text(json.dumps({"playbook": 1, "drains": drains, "schedule": schedule}))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "orchestrator", "schedule", "serve", str(self.book), "--json",
            "--store", str(self.store), "--test-runner", str(self.runner),
            "--test-clock", f"{RATE},{self.begin},{NOON}",
        ]  # fmt: skip
        own = {"JOURNALS": str(self.journals), **environment}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **own}, start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def runs(self) -> list[Run]:
        if not self.store.exists():
            return []
        with contextlib.closing(Store(self.store, make=True)) as store:
            return store.runs()

    def until(self, condition: Any, what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (what, self.runs()[-3:])
            time.sleep(0.01)

    def end(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        answer: dict[str, Any] = json.loads(out)
        return answer


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    tmp_path.chmod(0o700)
    made = Serving(tmp_path)
    yield made
    for process in made.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it had run
        process.communicate()


def at_work(serving: Serving, server: int) -> bool:
    running = any(one.state == "running" for one in serving.runs())
    return running and server_of(serving.store) == server


def test_each_due_run_exactly_once_across_kills(serving: Serving) -> None:
    luck = random.Random()  # when it is killed is a matter of luck anyway
    process = serving.start()
    serving.until(serving.runs, "the first run")
    for place in range(6):
        if place % 2:  # the others mostly meet it while it starts
            serving.until(lambda own=process.pid: at_work(serving, own), "one is at work")
        moment = time.monotonic() + luck.uniform(0, 0.2 if place % 2 else 1.2)
        serving.until(lambda until=moment: time.monotonic() >= until, "the moment")
        process.kill()
        process.wait()
        process = serving.start()
    count = len(serving.runs())
    serving.until(lambda: server_of(serving.store) == process.pid, "it serves again")
    serving.until(lambda: len(serving.runs()) >= count + 5, "more of them")
    serving.write(cron="0 0 1 1 *", overlap="wait")  # no more
    ended = {"done"}
    serving.until(lambda: {one.state for one in serving.runs()} == ended, "all are done")
    assert serving.end(process)["interrupted"] == []

    runs = serving.runs()
    due = [one.due for one in runs]
    assert due == [due[0] + 60 * place for place in range(len(due))], "one was lost"
    ids = [one.drains[0]["id"] for one in runs]
    assert sorted(ids) == sorted(path.name for path in serving.journals.iterdir())
    for one in ids:
        assert (serving.journals / one).read_text() == "begin\nend\n", "one was doubled"
    assert max(one.times for one in runs) > 1, "no kill has met a run"


def test_a_signal_interrupts_says_which_and_the_next_goes_on(serving: Serving) -> None:
    process = serving.start(HOLD="1")
    serving.until(lambda: any(serving.journals.iterdir()), "the first run")
    second = serving.start()
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 3
    error = json.loads(out)["error"]
    assert error["code"] == "schedule-served" and str(process.pid) in error["message"]
    answer = serving.end(process)
    (interrupted,) = answer["interrupted"]
    assert interrupted["outcome"] == "interrupted" and interrupted["drains"][0]["id"]
    process = serving.start()
    serving.until(lambda: serving.runs()[0].state == "done", "it is gone on with")
    serving.end(process)
    first = serving.runs()[0]
    assert first.times == 2 and first.drains[0]["id"] == interrupted["drains"][0]["id"]
    assert (serving.journals / first.drains[0]["id"]).read_text() == "begin\nend\n"
