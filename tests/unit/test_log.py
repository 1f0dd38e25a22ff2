"""The structured log: what each line names, where it goes, and that it costs nothing unread."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import log, report
from orchestrator.__main__ import run
from tests.unit.test_cli_outcomes import MOVE, roll_back, setting
from tests.wire.scripted_run import Setting

__all__ = ["setting"]
LOG = logging.getLogger("orchestrator.of_a_test")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


# --- lines


def test_a_line_is_one_object(path: Path) -> None:
    with log.writing(True, str(path), logging.INFO):
        LOG.info("two\nlines", extra={"host": "src", "ms": 1.5, "lacking": None})
    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "event": "two\nlines", "logger": LOG.name, "host": "src", "ms": 1.5,
    }  # fmt: skip


async def test_what_is_bound_is_the_task_s_own(path: Path) -> None:
    async def migrate(name: str, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        about = log.bind(migration="not known yet")
        about["migration"] = name
        await turn.wait()
        await asyncio.create_task(inner())
        next_turn.set()

    async def inner() -> None:
        LOG.info("inner")

    first, second, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    with log.writing(True, str(path), logging.INFO):
        works = [migrate("a", second, end), migrate("b", first, second)]
        first.set()
        await asyncio.gather(*map(asyncio.create_task, works))
        LOG.info("outer")
    assert [line.get("migration") for line in lines(path)] == ["b", "a", None]


class Unread:
    def __str__(self) -> str:
        raise AssertionError("nobody reads this")


def test_what_nobody_reads_is_not_formatted(path: Path) -> None:
    LOG.info("%s", Unread())  # without a log
    with log.writing(True, str(path), logging.WARNING):
        LOG.info("%s", Unread())
    assert path.read_text() == ""


def test_without_a_log_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with log.writing(False, None, logging.DEBUG):
        LOG.error("unheard")
    assert capsys.readouterr() == ("", "") and not log.takes_stderr()


def test_text_for_a_person_drives_no_terminal(path: Path) -> None:
    with log.writing(False, str(path), logging.INFO):
        log_line = {"migration": "ID", "host": "src", "ms": 1.5}
        LOG.warning("\x1b[2J%s", "evil\nline", extra=log_line)
    (line,) = path.read_text().splitlines()
    assert line.endswith(r" WARNING ID src \x1b[2Jevil\nline ms=1.5")


def test_a_log_is_appended_to(path: Path) -> None:
    for number in range(2):
        with log.writing(True, str(path), logging.INFO):
            LOG.info("run %d", number)
    assert [line["event"] for line in lines(path)] == ["run 0", "run 1"]


def test_a_reader_that_has_gone_is_said_once_and_stops_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with log.writing(True, "/dev/full", logging.INFO):
        for _ in range(3):
            LOG.info("x")
    assert capfd.readouterr().err == (
        "migrate: the log cannot be written: No space left on device\n"
    )


def test_with_json_on_stderr_nothing_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with log.writing(True, None, logging.INFO):
        report.say("a note", sys.stderr)
        report.problem("it failed", "do this")
        report.Silent().note("who notes has logged it")
    found = [json.loads(line) for line in stderr.getvalue().splitlines()]
    assert [(one["level"], one["event"], one.get("hint")) for one in found] == [
        ("warning", "a note", None), ("error", "it failed", "do this"),
    ]  # fmt: skip


# --- the command


def logged(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, list[dict[str, Any]]]:
    status = run([*MOVE, "--log-json", *arguments])
    told = capsys.readouterr()
    return status, told.out, [json.loads(line) for line in told.err.splitlines()]


def test_a_migration_from_its_beginning_to_its_end(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, found = logged(capsys, "--json")
    result = json.loads(out)
    assert status == 0
    events = [one["event"] for one in found]
    assert events[:2] == ["migration begun", "check passed"] and events[-1] == "migration ended"
    assert {(one["source"], one["destination"], one["pid"]) for one in found} == {
        ("src", "dst", 5000)
    }
    assert {one["migration"] for one in found[1:]} == {result["id"]}
    last = found[-1]
    assert (last["level"], last["outcome"]) == ("info", "migrated")
    assert last["blackout_ms"] == result["blackout_ms"] and last["bytes"] == result["bytes"]


def test_one_that_was_rolled_back_says_why(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    roll_back(setting)
    _, _, found = logged(capsys)
    last = next(one for one in found if one["event"] == "migration ended")
    assert (last["level"], last["outcome"], last["code"]) == ("warning", "rolled-back", "fault")
    assert found[-1]["level"] == "error" and found[-1]["hint"]


@pytest.mark.parametrize(
    ("options", "events"),
    [
        (["--log-level", "warning"], []),
        (["-q"], []),
        ([], ["migration begun", "check passed", "migration ended"]),
    ],
)
def test_levels(
    setting: Setting, capsys: pytest.CaptureFixture[str], options: list[str], events: list[str]
) -> None:
    _, _, found = logged(capsys, *options)
    assert [one["event"] for one in found if one["event"] != "phase over"] == events


def test_a_log_that_cannot_be_written_is_known_before_anything_is_touched(
    setting: Setting, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing" / "log"
    assert run([*MOVE, "--log-file", str(missing)]) == 2
    told = capsys.readouterr()
    assert str(missing) in told.err and "No such file or directory" in told.err
    assert told.out == "" and os.listdir(tmp_path) == []
