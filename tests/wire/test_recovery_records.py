"""Recoveries and the records of this machine: what is written down when, and damaged ones."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.journal import JournalExposed
from orchestrator import recovering
from orchestrator.__main__ import run
from orchestrator.migration.driver import Driver, Request
from orchestrator.records import Records, directory, is_open
from orchestrator.recovering import Recoverer
from tests.wire.scripted_agent import (
    Json,
    ScriptedAgent,
    destination_report,
    source_report,
)
from tests.wire.scripted_run import Setting
from tests.wire.test_recovery import (
    ENDED,
    GOES_ON,
    HAS_IT,
    ID,
    NAMED,
    UNDID,
    Pair,
    journal_row,
    outcome,
)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pair]:
    yield Pair(monkeypatch, Records(tmp_path / "records"))


def test_the_others_are_recovered_where_a_record_is_damaged(
    hosts: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.host("src", GOES_ON)
    hosts.host("dst", UNDID)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Records().begin(NAMED, None)
    bad = directory() / "20261124-110000-000000.json"
    bad.write_text("{")
    status = run(["recover", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == 3 and [one["id"] for one in told["migrations"]] == [ID]
    assert told["error"]["code"] == "record-damaged"
    assert [one["path"] for one in told["damaged"]] == [str(bad)]
    record = Records().get(ID)
    assert record is not None and not is_open(record)


def test_a_doubt_beside_a_damaged_record_is_a_doubt(
    hosts: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Records().begin(NAMED, None)
    (directory() / "20261124-110000-000000.json").write_text("{")
    assert run(["recover"]) == 4


async def test_what_a_damaged_record_cannot_take_is_not_forgotten(
    hosts: Pair, tmp_path: Path
) -> None:
    hosts.host("src", ENDED, **{"journal.list": {"journals": [journal_row()], "damaged": []}})
    hosts.host("dst", HAS_IT)
    hosts.records.begin(NAMED, None)
    (tmp_path / "records" / f"{ID}.json").write_text("{")
    worker = Recoverer(None, hosts.records)
    (report,) = await worker.recover("src")
    assert outcome(report) == ("migrated", [], 0) and not hosts.forgotten
    assert "cannot be gone by" in worker.unwritten[0]


def test_a_lost_host_that_no_record_names_beside_a_damaged_one(
    hosts: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Records().begin(NAMED, None)
    bad = directory() / "20261124-110000-000000.json"
    bad.write_text("{")
    assert run(["recover", "--lost", "third", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["code"] == "host-not-named"
    assert [one["path"] for one in told["damaged"]] == [str(bad)]
    assert run(["recover", "--lost", "third"]) == 3
    assert str(bad) in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["human", "json"])
@pytest.mark.parametrize("verb", ["list", "recover"])
def test_a_damaged_journal_of_a_host_is_named_and_keeps_none_of_the_others(
    hosts: Pair, capsys: pytest.CaptureFixture[str], verb: str, options: list[str]
) -> None:
    path = "/var/lib/streamferry/journal/20260101-000000-aaaaaa-source"
    bad = JournalExposed(path=path, detail="others may write to it (mode 666)").to_wire()
    answer = {"journals": [journal_row()], "damaged": [bad]}
    hosts.host("src", ENDED, **{"journal.list": answer})
    hosts.host("dst", HAS_IT)
    assert run([verb, "src", *options]) == 3
    printed = capsys.readouterr()
    if not options:
        assert ID in printed.out and f"src: the journal {path}" in printed.err
        return
    told = json.loads(printed.out)
    assert [one["id"] for one in told["migrations"]] == [ID]
    (row,) = told["damaged"]
    assert (row["host"], row["path"], row["code"]) == ("src", path, "journal-exposed")


def test_an_agent_that_has_written_nothing_yet_is_of_no_pid(
    hosts: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    row = journal_row(state="", pid=0, source="", destination="")
    hosts.host("src", ENDED, **{"journal.list": {"journals": [row], "damaged": []}})
    assert run(["list", "src"]) == 0
    said = capsys.readouterr().out
    assert "written nothing" in said and "PID" not in said


@pytest.mark.parametrize("verb", ["list", "recover"])
@pytest.mark.parametrize(
    ("answer", "code"), [(None, "unreachable"), ({"journals": "odd"}, "protocol")]
)
def test_a_host_that_does_not_say_what_it_has(
    hosts: Pair, capsys: pytest.CaptureFixture[str], verb: str, answer: Json | None, code: str
) -> None:
    """An error that would undo a migration undoes none here."""
    if answer is not None:
        hosts.host("src", GOES_ON, **{"journal.list": answer})
    assert run([verb, "src", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["migrations"] == [] and told["error"]["code"] == code


@pytest.mark.parametrize("verb", ["list", "recover", "doctor"])
def test_a_signal_says_nothing_of_where_a_process_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async def interrupted(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(recovering, "open_agent", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run([verb, "src", "--json"]) == 3
    finally:
        signal.signal(signal.SIGINT, before)
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["code"] == "interrupted" and verb in told["error"]["message"]
    assert "outcome" not in told


# --- within a migration


async def test_a_migration_is_written_down_before_it_is_touched_and_before_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    records, kept = Records(tmp_path / "records"), []

    def answers(report: Json) -> Any:
        async def answer(**_: Any) -> Json:
            (record,) = records.all()
            kept.append(record["result"] and record["result"]["outcome"])
            return report

        return answer

    setting = Setting(monkeypatch)
    setting.driver = Driver(Request("src", "dst", 5000), setting.told, records)
    setting.source.answers["source.run"] = answers(source_report())
    more = {
        "destination.run": answers(destination_report()),
        "recovery.forget": answers({"forgotten": True}),
    }
    setting.destination = ScriptedAgent("dst", {**setting.destination.answers, **more})
    assert (await setting.migrate())["outcome"] == "migrated"
    assert kept == [None, None, "migrated"]


async def test_an_interruption_after_the_run_does_not_change_what_is_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    records = Records(tmp_path / "records")
    setting = Setting(monkeypatch)
    setting.driver = Driver(Request("src", "dst", 5000), setting.told, records)

    async def forget(migration: str) -> Json:
        setting.driver.interrupt()
        setting.driver.interrupt()
        await asyncio.sleep(0)
        return {"forgotten": True}

    answers = {**setting.destination.answers, "recovery.forget": forget}
    setting.destination = ScriptedAgent("dst", answers)
    result = await setting.migrate()
    assert (result["outcome"], result["error"], setting.status) == ("migrated", None, 0)
    (record,) = records.all()
    assert record["result"] is not None and record["result"]["outcome"] == "migrated"
    assert setting.told.notes[-1] == "still finishing: it is never left half done"
