"""`migrate schedule list|next|run|pause|resume|history` at the command line."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import run as migrate
from orchestrator.playbook.model import Schedule
from orchestrator.scheduling.store import Lock, Row, Run, Store
from tests.support.schedules import NOON

ROOT = Path(__file__).resolve().parents[2]
NIGHTLY = Schedule.model_validate(
    {"cron": "30 2 * * SUN", "time_zone": "Europe/Berlin", "window": "2h"}
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "streamferry" / "schedule.db"


@pytest.fixture
def store(path: Path) -> Any:
    with contextlib.closing(Store(path, make=True)) as store:
        with store.transaction():
            store.put(Row("nightly-drain", "/etc/nightly-drain.yaml", NIGHTLY, time.time()))
            store.put(Row("odd", "/etc/odd.yaml", None, NOON, None, "wrong", "odd.yaml: no"))
            store.put(Row("old", "/etc/old.yaml", NIGHTLY, NOON, None, "gone", "it is gone"))
            drain = {"id": "20260607-023001-abcdef", "node": "src", "outcome": "drained"}
            store.add(Run("nightly-drain", NOON, "done", "", False, NOON + 1, NOON + 9, 1, "x",
                          NOON + 7200, [drain]))  # fmt: skip
            store.add(Run("nightly-drain", NOON + 60, "skipped", "it is paused", ended=NOON))
        yield store


def told(capsys: Capture, *arguments: str) -> tuple[int, Any]:
    status = migrate(["schedule", *arguments, "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return status, json.loads(out)


def test_before_anything_was_served(path: Path, capsys: Capture) -> None:
    assert told(capsys, "list") == (0, {"server": None, "schedules": [], "error": None})
    assert told(capsys, "history") == (0, {"runs": [], "error": None})
    assert told(capsys, "next") == (0, {"next": [], "error": None})
    for verb in ("run", "pause", "resume", "history", "next"):
        status, answer = told(capsys, verb, "nightly")
        assert (status, answer["error"]["code"]) == (3, "unknown-schedule")
        assert answer["error"]["hint"] == "Nothing was ever served here."
    assert not path.exists()
    assert migrate(["schedule", "list"]) == 0
    assert capsys.readouterr().out == "Nothing was ever served here.\n"


def test_list_and_history(store: Store, capsys: Capture) -> None:
    status, answer = told(capsys, "list")
    first, odd, old = answer["schedules"]
    assert (status, answer["server"], first["state"], odd["why"]) == (0, None, "served",
                                                                      "odd.yaml: no")  # fmt: skip
    assert first["next"].endswith(("T02:30:00+01:00", "T02:30:00+02:00"))
    assert first["last"]["outcome"] == "skipped" and (old["next"], odd["cron"]) == (None, None)
    status, answer = told(capsys, "history", "nightly-drain", "--limit", "5")
    done, skipped = answer["runs"]
    assert done["due"] == "2026-06-01T14:00:00+02:00" and done["outcome"] == "done"
    assert done["drains"][0]["id"] == "20260607-023001-abcdef" and done["begun"] and done["ended"]
    assert (skipped["why"], skipped["begun"], skipped["drains"]) == ("it is paused", None, [])
    assert migrate(["schedule", "list"]) == migrate(["schedule", "history"]) == 0
    text = capsys.readouterr().out
    assert "nightly-drain" in text and "Nobody serves them now." in text


def test_a_run_of_a_killed_server_is_told_as_interrupted(
    store: Store, path: Path, capsys: Capture
) -> None:
    with store.transaction():
        store.add(Run("nightly-drain", NOON + 90, "running", times=1))
    assert told(capsys, "history")[1]["runs"][-1]["outcome"] == "interrupted"
    lock = Lock(path)
    assert told(capsys, "history")[1]["runs"][-1]["outcome"] == "running"
    assert told(capsys, "list")[1]["schedules"][0]["last"]["outcome"] == "running"
    lock.release()


def test_next(store: Store, capsys: Capture, tmp_path: Path) -> None:
    status, answer = told(capsys, "next", "--limit", "3")
    assert status == 0 and [one["name"] for one in answer["next"]] == ["nightly-drain"] * 3
    book = str(ROOT / "playbooks/nightly-drain.yaml")
    status, answer = told(capsys, "next", book, "--limit", "1")
    (one,) = answer["next"]
    assert one["due"] <= one["begins"] < one["window_ends"]
    assert migrate(["schedule", "next", book]) == 0 and ", until " in capsys.readouterr().out
    status, answer = told(capsys, "next", str(ROOT / "playbooks/drain-node.yaml"))
    assert (status, answer["error"]["code"]) == (2, "nothing-scheduled")
    (tmp_path / "bad.yaml").write_text("playbook: 1\n")
    status, answer = told(capsys, "next", str(tmp_path / "bad.yaml"))
    assert (status, answer["error"]["code"]) == (2, "playbook-invalid")


def test_pause_and_resume(store: Store, capsys: Capture) -> None:
    status, answer = told(capsys, "pause", "nightly-drain")
    assert (status, answer["paused"], answer["changed"]) == (0, True, True)
    assert told(capsys, "pause", "nightly-drain")[1]["changed"] is False
    assert told(capsys, "list")[1]["schedules"][0]["paused"]
    assert migrate(["schedule", "list"]) == 0 and "paused since" in capsys.readouterr().out
    status, answer = told(capsys, "resume", "nightly-drain")
    assert (status, answer["paused"], answer["changed"]) == (0, False, True)
    assert migrate(["schedule", "resume", "nightly-drain"]) == 0
    assert capsys.readouterr().out == "nightly-drain was not paused already.\n"
    status, answer = told(capsys, "pause", "nightly-drian")
    assert (status, answer["error"]["hint"]) == (3, "Did you mean `nightly-drain`?")


def test_run_is_asked_of_who_serves(store: Store, path: Path, capsys: Capture) -> None:
    status, answer = told(capsys, "run", "nightly-drain")
    assert (status, answer["error"]["code"]) == (3, "schedule-not-served")
    lock = Lock(path)
    status, answer = told(capsys, "run", "odd")
    assert (status, answer["error"]["code"]) == (3, "schedule-cannot-run")
    assert "odd.yaml: no" in answer["error"]["message"] and store.left() == []
    status, answer = told(capsys, "run", "nightly-drain")
    lock.release()
    assert (status, answer["run"]["outcome"], answer["run"]["asked"]) == (0, "waiting", True)
    assert [one.asked for one in store.left()] == [True]


def test_a_damaged_store_is_one_clear_word_for_each(
    path: Path, capsys: Capture, tmp_path: Path
) -> None:
    path.parent.mkdir()
    path.write_text("no database, but long enough to be read as the header of one\n" * 9)
    book = tmp_path / "x.yaml"
    book.write_text(json.dumps({"playbook": 1, "drains": [{"node": "a", "to": ["b"]}],
                                "schedule": {"cron": "0 0 1 1 *"}}))  # fmt: skip
    for arguments in (["list"], ["history"], ["next"], ["run", "x"], ["pause", "x"],
                      ["serve", str(book)]):  # fmt: skip
        status, answer = told(capsys, *arguments)
        assert (status, answer["error"]["code"]) == (3, "schedule-damaged"), arguments


def test_serve_refuses_what_is_wrong(path: Path, capsys: Capture, tmp_path: Path) -> None:
    status, answer = told(capsys, "serve", str(tmp_path / "none"))
    assert (status, answer["error"]["code"]) == (2, "nothing-scheduled")
    assert answer["served"] == [] and not path.exists()
    assert migrate(["schedule", "serve", str(ROOT / "playbooks/drain-node.yaml")]) == 2
    assert "has no schedule" in capsys.readouterr().err
    assert migrate(["schedule", "serve"]) == 2


def test_options_may_stand_before_the_verbs(path: Path, capsys: Capture) -> None:
    assert migrate(["--json", "schedule", "history"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []
