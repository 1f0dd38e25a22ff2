"""What a person reads: steps, summaries, errors; and nobody who reads is not an error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError, Cancelled, FaultInjected
from agent.plan import Plan
from agent.source_host import CopyEnded
from orchestrator import report
from orchestrator.memory import Choice
from orchestrator.migration import result as results
from orchestrator.migration.driver import Request
from orchestrator.migration.result import Json
from orchestrator.refusals import Refusal
from orchestrator.report import Human, Silent
from tests.support.facts import Case

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Choice("stop", "8 MiB are sent soonest at once")
REQUEST = Request("src", "dst", 5000)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def stream(number: int, wake_ms: float = 1.0) -> Json:
    return {
        "local": "10.77.0.100:6379", "remote": f"10.77.0.13:{40000 + number}",
        "state": "ESTABLISHED", "receive_queue": 0, "send_queue": 1234, "unsent": 1000,
        "wake_ms": wake_ms, "probes": 1,
    }  # fmt: skip


def migrated(**over: Any) -> Json:
    result = results.empty("20261123-134501-7f3a9c", "src", "dst", 5000)
    result.update(
        outcome="migrated", blackout_ms=41.26, clock_error_ms=0.123,
        streams=[stream(number, number + 0.5) for number in range(3)], replayed_packets=1,
        bytes={"memory": 8 << 20, "streams": 3702, "files": 5000},
    )  # fmt: skip
    return {**result, **over}


def rolled_back(error: AgentError, phase: str) -> Json:
    result = results.empty("id", "src", "dst", 5000)
    return {**result, "outcome": "rolled-back", "error": results.described(error, phase)}


def summary(capsys: pytest.CaptureFixture[str], result: Json, verbose: bool = False) -> list[str]:
    report.summary(result, verbose)
    told = capsys.readouterr()
    assert told.err == ""
    return told.out.splitlines()


# --- the summary


def test_a_migration_in_two_lines_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, migrated())
    assert lines[0] == (
        "Migrated. Blackout 41.3 ms (± 0.12 ms between the clocks), 3 streams, "
        "8.0 MiB of memory, 3.6 KiB in queues"
    )
    assert lines[1] == (
        "  peers awake after 0.5 / 1.5 / 2.5 ms (least, median, most); 1 packet replayed"
    )
    assert lines[2].split() == ["local", "remote", "received", "to", "send", "unsent", "wake"]
    assert lines[3].split() == ["10.77.0.100:6379", "10.77.0.13:40000", "0", "1234", "1000",
                                "0.5", "ms"]  # fmt: skip
    assert len(lines) == 6


@pytest.mark.parametrize("number, verbose, shown", [(10, False, 10), (11, False, 0), (11, True, 11),
                                                    (0, False, 0)])  # fmt: skip
def test_a_long_table_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], number: int, verbose: bool, shown: int
) -> None:
    result = migrated(streams=[stream(one) for one in range(number)])
    lines = summary(capsys, result, verbose)
    assert len(lines) == 2 + (1 + shown if shown else 0)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "  1 packet replayed"),
        ([2.0], "  peers awake after 2.0 / 2.0 / 2.0 ms (least, median, most); "),
        ([-1.0], "  no peer has answered yet; "),
        ([-1.0, 3.0, 1.0], "(least, median, most); 1 have not answered yet; "),
    ],
)
def test_peers_that_have_not_answered(
    capsys: pytest.CaptureFixture[str], times: list[float], said: str
) -> None:
    result = migrated(streams=[stream(number, ms) for number, ms in enumerate(times)])
    lines = summary(capsys, result)
    assert said in lines[1]
    assert ("-" in [line.split()[-1] for line in lines[3:]]) is (-1.0 in times)


def test_a_rollback_names_the_phase_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = summary(capsys, rolled_back(FaultInjected(point="x"), "restore_streams"))
    assert line == "Rolled back in the phase 'restore streams': PID 5000 goes on at src"
    (line,) = summary(capsys, rolled_back(Cancelled(phase="check"), "check"))
    assert line == "Rolled back in the phase 'check': PID 5000 goes on at src"
    (line,) = summary(capsys, rolled_back(FaultInjected(point="x"), ""))
    assert line == "Rolled back: PID 5000 goes on at src"


def test_a_process_that_has_ended_does_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    ended = CopyEnded(pid=5000, how="ended", detail="it was undone")
    (line,) = summary(capsys, rolled_back(ended, "freeze"))
    assert line == "Rolled back in the phase 'freeze': PID 5000 has ended at src"


def test_in_doubt_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = results.empty("id", "src", "dst", 5000)
    assert summary(capsys, {**result, "outcome": "in-doubt"}) == [
        "In doubt: PID 5000 needs a look by hand"
    ]
    assert summary(capsys, result) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"),
     (5 << 40, "5120.0 GiB")],
)  # fmt: skip
def test_sizes(number: int, said: str) -> None:
    assert report.size(number) == said


# --- steps as they happen


def plan() -> Plan:
    made = Case().judge()
    assert isinstance(made, Plan)
    return made


def test_steps_with_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    human = Human("Moving")
    human.started(REQUEST)
    human.checked(123.4, plan(), dict(Case().process), MEMORY)
    human.phase({"name": "dump_streams", "state": "begin", "unwinding": False})
    human.phase({"name": "dump_streams", "state": "end", "ms": 1.26, "unwinding": False})
    human.phase({"name": "unlock", "state": "end", "ms": 2.0, "unwinding": True})
    told = capsys.readouterr()
    assert told.err == ""
    first, second, third, *steps = told.out.splitlines()
    assert third == "  memory: stop, 8 MiB are sent soonest at once"
    assert first == "Moving PID 5000 from src to dst"
    assert second.startswith(
        "  redis-server: 1 process, 8.0 MiB, 1 connection, service address 10.77.0.100; migration "
    )
    assert [step.split() for step in steps] == [
        ["check", "123.4", "ms"],
        ["dump", "streams", "1.3", "ms"],
        ["undo:", "unlock", "2.0", "ms"],
    ]


def test_notes_go_to_stderr_and_the_silent_say_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = Silent()
    silent.started(REQUEST)
    silent.checked(1.0, plan(), {}, MEMORY)
    silent.phase({"name": "lock", "state": "end", "ms": 1.0, "unwinding": False})
    silent.progress(1, 2)
    silent.note("undoing")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "migrate: undoing\n")


def test_what_a_host_sends_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    human = Human("Moving")
    human.checked(1.0, plan(), {"comm": "evil\x1b]0;title\x07\nerror: none"}, MEMORY)
    human.note("src: \x1b[2Jcleared\r")
    report.problem("a file \x1b[31m\udcff", "look at \x9b1m it")
    told = capsys.readouterr()
    assert not set(told.out + told.err) & set("\x1b\x07\r\x9b\udcff")
    assert "evil\\x1b]0;title\\x07\\nerror: none" in told.out
    assert "src: \\x1b[2Jcleared\\r" in told.err


# --- the bar


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    human = Human("Moving")
    human.progress(1 << 30, 2 << 30)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    human = Human("Moving")
    human.progress(1 << 20, 2 << 20)  # too small to be worth it
    assert terminal.getvalue() == ""
    human.progress(512 << 20, 1 << 30)
    human.progress(1 << 30, 1 << 30)
    human.phase({"name": "ship", "state": "end", "ms": 5.0, "unwinding": False})
    text = terminal.getvalue()
    assert "memory" in text and text.rstrip().endswith("5.0 ms")


# --- errors


def test_an_error_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    report.problem("it failed", "do this")
    report.problem("it failed again", "")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: it failed\nhint:  do this\nerror: it failed again\n"


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_only_on_a_terminal_and_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    report.problem("it failed", "do this")
    assert ("\x1b[31merror:" in terminal.getvalue()) is not no_color


def test_all_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    report.refusals([Refusal("a", "A is so", "do A"), Refusal("b", "B is so", "do B")])
    assert capsys.readouterr().err == ("error: A is so\nhint:  do A\nerror: B is so\nhint:  do B\n")


# --- nobody reads


def test_a_terminal_that_only_knows_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    report.say("Blackout 1 ms (± 0 ms)", stream)
    stream.seek(0)
    assert stream.read() == "Blackout 1 ms (? 0 ms)\n"


SAY = "from orchestrator.report import say\nfor _ in range(3): say('x' * 100000)\nprint('end')"


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_has_gone_stops_nothing(kind: str) -> None:
    """`migrate ... | head -1` (EPIPE), and a terminal that was closed (EIO)."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = os.openpty()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", SAY], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
