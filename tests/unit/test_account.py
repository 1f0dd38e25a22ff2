"""What is kept of a migration for its report: of each that was begun, however it ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.errors import ProtocolError
from orchestrator.__main__ import run
from orchestrator.memory import Choice
from orchestrator.migration.account import Accountant, checked
from orchestrator.migration.driver import Request
from orchestrator.records import Record, Records
from orchestrator.report import Silent
from tests.support.facts import Case
from tests.unit.test_cli_outcomes import MOVE, roll_back, setting
from tests.wire.scripted_run import Setting

__all__ = ["setting"]
CHOICE = Choice("stop", "it is small")


def moved(capsys: pytest.CaptureFixture[str]) -> tuple[Record, dict[str, Any]]:
    """The record of a run, and what it printed."""
    run([*MOVE, "--json"])
    record = Records().last()
    assert record is not None
    return record, json.loads(capsys.readouterr().out)


def test_of_one_that_was_migrated(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    record, printed = moved(capsys)
    account = record["account"]
    assert account is not None and record["result"] is not None
    assert {one["role"] for one in account["timeline"]} == {"source", "destination"}
    assert account["comm"] == "redis-server" and account["processes"] == 1
    assert account["addresses"] == ["10.77.0.100"] and account["took_ms"] > 0
    assert "account" not in printed and "timeline" not in printed


def test_of_one_that_was_rolled_back(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    roll_back(setting)
    record, _ = moved(capsys)
    assert record["account"] is not None and record["account"]["timeline"]


def test_show_has_the_result_alone(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    record, printed = moved(capsys)
    assert run(["show", record["id"], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "account" not in shown and shown["result"]["id"] == printed["id"]


def phase(name: str, state: str = "end", ms: float = 1.0) -> dict[str, Any]:
    return {"name": name, "state": state, "ms": ms, "unwinding": False, "role": "source",
            "host": "src"}  # fmt: skip


def test_what_is_heard_is_kept_within_bounds() -> None:
    accountant = Accountant(Silent())
    accountant.started(Request("src", "dst", 5000))
    for _ in range(2000):
        accountant.phase(phase("ship"))
        accountant.phase(phase("ship", "begin"))
        accountant.note("x" * 10_000)
    account = accountant.account([])
    assert len(account["heard"]) == len(account["notes"]) == 1000
    assert all(len(one["text"]) == 4096 for one in account["notes"])


def test_a_command_line_is_kept_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case()
    plan = case.judge()
    accountant = Accountant(Silent())
    accountant.checked(1.0, plan, {**case.process, "cmdline": ["a" * 5000, "b"]}, CHOICE)  # type: ignore[arg-type]
    assert accountant.account([])["command"] == "a" * 4096


def test_it_is_checked_when_it_is_read() -> None:
    account = Accountant(Silent()).account([])
    assert checked({**account, "more": 1}, "x") == account
    for wrong in ([], {**account, "heard": [{"role": "source"}]}, {**account, "notes": None}, {}):
        with pytest.raises(ProtocolError):
            checked(wrong, "x")
