"""What the command prints and with which status it ends, with scripted agents behind it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Cancelled, FaultInjected
from orchestrator.__main__ import run
from orchestrator.errors import HostUnreachable
from orchestrator.migration.result import PHASES
from tests.support.facts import Case
from tests.wire.scripted_agent import destination_report, source_report
from tests.wire.scripted_run import Setting

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOVE = ["src", "dst", "--pid", "5000"]
CHECK = ["check", *MOVE]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Setting]:
    """Scripted hosts, no records; signals as in a shell's foreground, whatever the tests run in."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield Setting(monkeypatch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(list(arguments))
    told = capsys.readouterr()
    return status, told.out, told.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = ended(capsys, *arguments, "--json")
    assert out.count("\n") == 1 and out.endswith("\n")
    found = json.loads(out)
    assert isinstance(found, dict)
    return status, found


def roll_back(setting: Setting) -> None:
    error = FaultInjected(point="ship")
    setting.source.answers["source.run"] = source_report("rolled-back", error)
    setting.destination.answers["destination.run"] = destination_report("rolled-back", error)


# --- migrate


def test_migrated(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answer(capsys, *MOVE)
    assert status == 0
    assert found["outcome"] == "migrated" and found["error"] is None
    assert (found["source"], found["destination"], found["pid"]) == ("src", "dst", 5000)
    assert list(found["phases_ms"]) == list(PHASES)
    assert len(found["streams"]) == 2 and found["replayed_packets"] == 3


def test_migrated_for_a_person(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ended(capsys, *MOVE)
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert lines[0] == "Moving PID 5000 from src to dst"
    assert "redis-server: 1 process" in lines[1] and "10.77.0.100" in lines[1]
    assert any(line.startswith("Migrated. Blackout 40.0 ms (± 0.20 ms") for line in lines)


def test_rolled_back(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    roll_back(setting)
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"], found["error"]["code"]) == (1, "rolled-back", "fault")
    assert found["error"]["phase"] == "dump_process"


def test_rolled_back_for_a_person(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    roll_back(setting)
    status, out, err = ended(capsys, *MOVE)
    assert status == 1
    assert out.splitlines()[-1] == (
        "Rolled back in the phase 'dump process': PID 5000 goes on at src"
    )
    error, hint = err.splitlines()
    assert error.startswith("error: fault injected") and hint.startswith("hint: ")


def test_quiet(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, *MOVE, "-q") == (0, "", "")
    setting.use(Case())
    roll_back(setting)
    status, out, err = ended(capsys, *MOVE, "-q")
    assert (status, out) == (1, "") and err.startswith("error: ")


def test_refused(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case()
    case.found["taken"] = [{"pid": 5000, "owner": 77, "comm": "cron"}]
    case.found["unix_names"] = ["/run/redis.sock"]
    setting.use(case)
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"], found["error"]["code"]) == (3, "refused", "pid-taken")
    assert "1 more" in found["error"]["message"]

    setting.use(case)
    status, out, err = ended(capsys, *MOVE)
    assert status == 3
    assert [line.split()[0] for line in err.splitlines()] == ["error:", "hint:"] * 2
    assert "cron" in err and "/run/redis.sock" in err


def test_an_option_that_is_missing(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case()
    case.found["missing_options"] = [{"option": "SO_BINDTODEVICE", "reason": "no device 'eth9'"}]
    setting.use(case)
    status, found = answer(capsys, *MOVE)
    assert (status, found["error"]["code"]) == (3, "option-missing")

    setting.use(case)
    status, out, err = ended(capsys, *MOVE, "--without-missing-options", "-q")
    assert (status, out) == (0, "")
    assert err.startswith("migrate: warning: dst cannot give") and "eth9" in err


def test_a_host_that_cannot_be_reached(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting.unreachable["dst"] = HostUnreachable(host="dst", detail="no route to host")
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"], found["error"]["code"]) == (3, "refused", "unreachable")


def test_a_bad_name_of_a_host_is_usage(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = answer(capsys, "src", "dst:none", "--pid", "5")
    assert (status, found["outcome"], found["error"]["code"]) == (2, "refused", "usage")


# --- check


def test_ready(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answer(capsys, *CHECK)
    assert (status, found["outcome"], found["error"], found["refusals"]) == (0, "ready", None, [])
    plan = found["plan"]
    assert plan["addresses"][0]["address"] == "10.77.0.100"
    assert plan["listeners"][0]["port"] == 6379 and plan["memory"] == 8 << 20
    assert found["streams"] == [
        {"local": "10.77.0.100:6379", "remote": "10.77.0.13:40000", "state": "ESTABLISHED"}
    ]
    calls = setting.source.calls + setting.destination.calls
    assert not [name for name in calls if not name.startswith("probe.")]


def test_ready_for_a_person_and_dry_run(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ended(capsys, *CHECK)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("Checking PID 5000")
    assert out.splitlines()[-1] == "Ready: PID 5000 can move to dst"
    setting.use(Case())
    assert answer(capsys, *MOVE, "--dry-run")[1]["outcome"] == "ready"
    assert not [name for name in setting.source.calls if not name.startswith("probe.")]


def test_every_refusal_of_a_check(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case()
    case.found["taken"] = [{"pid": 5000, "owner": 77, "comm": "cron"}]
    case.found["unix_names"] = ["/run/redis.sock"]
    setting.use(case)
    status, found = answer(capsys, *CHECK)
    assert (status, found["outcome"], found["plan"], found["streams"]) == (3, "refused", None, [])
    assert [one["code"] for one in found["refusals"]] == ["pid-taken", "unix-name-taken"]
    assert all(one["message"] and one["hint"] for one in found["refusals"])


def test_a_check_that_cannot_be_made(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    setting.unreachable["src"] = HostUnreachable(host="src", detail="no route to host")
    status, out, err = ended(capsys, *CHECK)
    assert status == 3 and "error: src cannot be reached: no route to host" in err
    status, found = answer(capsys, *CHECK)
    assert (status, found["outcome"]) == (3, "refused")
    (refusal,) = found["refusals"]
    assert {**refusal, "phase": "check"} == found["error"]
    assert refusal["code"] == "unreachable"


# --- signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_check(
    setting: Setting, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    async def interrupted(**_: Any) -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    setting.source.answers["probe.process"] = interrupted
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"], found["error"]["code"]) == (1, "rolled-back", "cancelled")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_run_is_passed_on(
    setting: Setting, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    cancelled = asyncio.Event()

    async def runs(**_: Any) -> Any:
        os.kill(os.getpid(), number)
        await cancelled.wait()
        return source_report("rolled-back", Cancelled(phase="freeze"))

    async def cancel(**_: Any) -> Any:
        os.kill(os.getpid(), number)  # a second one changes nothing
        cancelled.set()
        return {"accepted": True}

    setting.source.answers["source.run"] = runs
    setting.source.answers["source.cancel"] = cancel
    setting.destination.answers["destination.run"] = destination_report("rolled-back")
    status, out, err = ended(capsys, *MOVE, "--json")
    found = json.loads(out)
    assert (status, found["outcome"], found["error"]["code"]) == (1, "rolled-back", "cancelled")
    assert "migrate: undoing" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_end_changes_nothing(
    setting: Setting,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """What was done is told, although somebody has lost patience."""
    module = sys.modules["orchestrator.cli.move"]
    tell = module.print_json  # type: ignore[attr-defined]

    def told_late(result: Any) -> None:
        os.kill(os.getpid(), number)
        tell(result)

    monkeypatch.setattr(module, "print_json", told_late)
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"]) == (0, "migrated")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_anything_was_begun(
    setting: Setting,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def slow_import(given: Any, verb: str) -> Any:
        os.kill(os.getpid(), number)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(sys.modules["orchestrator.cli.move"], "run_driver", slow_import)
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"], found["error"]["code"]) == (1, "rolled-back", "cancelled")
    assert setting.source.calls == []


def test_nohup_is_respected(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    async def runs(**_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return source_report()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    setting.source.answers["source.run"] = runs
    status, found = answer(capsys, *MOVE)
    assert (status, found["outcome"]) == (0, "migrated")
    assert "source.cancel" not in setting.source.calls
