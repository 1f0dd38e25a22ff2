"""What was counted, as Prometheus reads it: it adds up over runs, and over runs beside them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.__main__ import run
from orchestrator.cli.schedule import serving
from orchestrator.metrics import BLACKOUT, Metrics
from orchestrator.records import Records
from orchestrator.recovery import Named
from tests.support.facts import Case
from tests.support.records import ID, full
from tests.unit.test_cli_outcomes import MOVE, roll_back, setting
from tests.wire.scripted_run import Setting

__all__ = ["setting"]
ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A state directory, and a file that each run writes."""

    def __init__(self, path: Path) -> None:
        self.state, self.file = path / "state", path / "streamferry.prom"
        self.records = Records(self.state / "migrations")

    def run(self) -> Metrics:
        """As a new run of the command has it."""
        return Metrics(str(self.file), self.state, self.records)

    def sample(self, name: str, **labels: str) -> float:
        return parsed(self.file)[f"streamferry_{name}", tuple(sorted(labels.items()))]


def parsed(file: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(file.read_text())
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def result(outcome: str = "migrated", blackout: float = 40.0, *wakes: float) -> dict[str, Any]:
    made = full(ID)
    stream = {"receive_queue": 0, "send_queue": 0, "unsent": 0, "state": "ESTABLISHED",
              "local": "a:1", "remote": "b:2", "probes": 1}  # fmt: skip
    made.update(
        outcome=outcome, blackout_ms=blackout, replayed_packets=2,
        streams=[{**stream, "wake_ms": one} for one in wakes],
        bytes={"memory": 1000, "streams": 20, "files": 3}, sync_bytes=7,
    )  # fmt: skip
    return made


def test_counts_add_up_over_runs(place: Place) -> None:
    for _ in range(3):
        place.run().migration(result())
    place.run().migration(result("rolled-back"))
    assert place.sample("migrations_total", outcome="migrated") == 3
    assert place.sample("migrations_total", outcome="rolled-back") == 1
    assert place.sample("migrations_total", outcome="refused") == 0
    assert place.sample("bytes_total", kind="memory") == 4000
    assert place.sample("bytes_total", kind="sync") == 28
    assert place.sample("replayed_packets_total") == 6
    assert place.sample("last_migration_timestamp_seconds", outcome="migrated") > 1.7e9


def test_they_outlive_the_file(place: Place) -> None:
    place.run().migration(result())
    place.file.unlink()
    place.run().write()
    assert place.sample("migrations_total", outcome="migrated") == 1


def test_a_run_without_a_file_is_counted_too(place: Place) -> None:
    Metrics(None, place.state, place.records).migration(result())
    assert not place.file.exists()
    place.run().write()
    assert place.sample("migrations_total", outcome="migrated") == 1


def test_histograms(place: Place) -> None:
    metrics = place.run()
    metrics.migration(result("migrated", 40.0, 1.0, 70.0, -1.0))
    metrics.migration(result("migrated", 60_000.0))
    metrics.migration(result("rolled-back", 0.0, -1.0))
    assert place.sample("blackout_seconds_count") == 2
    assert place.sample("blackout_seconds_sum") == pytest.approx(60.04)
    assert place.sample("blackout_seconds_bucket", le="0.03") == 0
    assert place.sample("blackout_seconds_bucket", le="0.05") == 1
    assert place.sample("blackout_seconds_bucket", le="30.0") == 1
    assert place.sample("blackout_seconds_bucket", le="+Inf") == 2
    assert place.sample("stall_seconds_count") == 2  # 41 and 110 ms
    assert place.sample("stall_seconds_bucket", le="0.1") == 1
    assert place.sample("silent_connections_total") == 1


def test_a_bound_belongs_to_its_bucket(place: Place) -> None:
    place.run().migration(result("migrated", BLACKOUT[3] * 1000))
    assert place.sample("blackout_seconds_bucket", le=str(BLACKOUT[3])) == 1


@pytest.mark.parametrize("blackout", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_is_none_spoils_nothing(place: Place, blackout: float) -> None:
    place.run().migration(result("migrated", blackout, 1.0))
    place.run().migration(result("migrated", 40.0))
    assert place.sample("migrations_total", outcome="migrated") == 2
    assert place.sample("blackout_seconds_count") == 1


def test_in_doubt_until_it_is_recovered(place: Place) -> None:
    place.records.begin(Named(ID, "src", "dst", 5000), None)
    doubted = result("in-doubt")
    place.records.end(ID, doubted)
    metrics = place.run()
    metrics.migration(doubted)
    assert place.sample("in_doubt") == 1
    place.records.end(ID, {**doubted, "outcome": "migrated", "recovered": True})
    metrics.write()
    assert place.sample("in_doubt") == 0
    assert place.sample("migrations_total", outcome="in-doubt") == 1


def test_drains_but_no_dry_run(place: Place) -> None:
    place.run().drain({"outcome": "drained", "dry_run": False})
    place.run().drain({"outcome": "ready", "dry_run": True})
    assert place.sample("drains_total", outcome="drained") == 1
    assert ("streamferry_drains_total", (("outcome", "ready"),)) not in parsed(place.file)


def test_what_is_only_known_from_a_recovery(place: Place) -> None:
    place.run().migration({"id": ID, "outcome": "migrated", "error": None, "recovered": True})
    assert place.sample("migrations_total", outcome="migrated") == 1
    assert place.sample("blackout_seconds_count") == 0


def test_all_may_read_it_and_nothing_is_left_beside_it(place: Place) -> None:
    before = os.umask(0o077)
    try:
        place.run().migration(result())
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o644
    assert sorted(os.listdir(place.file.parent)) == ["state", "streamferry.prom"]


COUNT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from orchestrator.metrics import Metrics
metrics = Metrics(None, Path(sys.argv[1]))
for _ in range(20):
    metrics.drain({"outcome": "drained", "dry_run": False})
"""


def test_runs_beside_each_other_lose_nothing(place: Place) -> None:
    command = [sys.executable, "-c", COUNT, str(place.state)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [one.wait() for one in running] == [0, 0, 0]
    place.run().write()
    assert place.sample("drains_total", outcome="drained") == 60


@pytest.mark.parametrize("text", ["", "[]", "{", '{"blackout": {"counts": [1]}}', '{"odd": 1}'])
def test_totals_that_cannot_be_gone_by_are_named_and_kept(
    place: Place, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    place.state.mkdir()
    path = place.state / "metrics.json"
    path.write_text(text)
    place.run().migration(result())
    said = capsys.readouterr().err
    assert f"{path} cannot be gone by" in said and "move it away" in said
    assert path.read_text() == text and not place.file.exists()


def test_a_file_that_cannot_be_written_stops_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.file.mkdir()
    place.run().migration(result())
    assert f"no metrics in {place.file}: " in capsys.readouterr().err
    assert place.run().totals().migrations == {"migrated": 1}


# --- the command


def test_the_command_counts_each_of_its_runs(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "streamferry.prom"
    assert run([*MOVE, "-q", "--metrics-file", str(file)]) == 0
    setting.use(Case())
    roll_back(setting)
    assert run([*MOVE, "-q", "--metrics-file", str(file)]) == 1
    found = parsed(file)
    for outcome in ("migrated", "rolled-back"):
        assert found["streamferry_migrations_total", (("outcome", outcome),)] == 1
    assert found["streamferry_stall_seconds_count", ()] + found[
        "streamferry_silent_connections_total", ()
    ] == 2  # fmt: skip


def test_a_directory_that_is_not_there_is_known_before(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing" / "x.prom"
    assert run([*MOVE, "--metrics-file", str(missing), "--json"]) == 2
    assert str(missing.parent) in json.loads(capsys.readouterr().out)["error"]["message"]
    assert os.listdir(tmp_path) == []


def test_the_file_of_a_link_is_replaced_and_the_link_stays(place: Place) -> None:
    target = place.file.with_name("target.prom")
    place.file.symlink_to(target)
    place.run().migration(result())
    assert place.file.is_symlink() and target.is_file()
    assert place.sample("migrations_total", outcome="migrated") == 1


def test_what_is_no_file_is_refused_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        assert run([*MOVE, "--metrics-file", str(path)]) == 2
        assert f"--metrics-file {path}: it is no regular file" in capsys.readouterr().err
        Metrics(str(path), tmp_path / "state").write()  # it became one later
        assert "it is no regular file any more" in capsys.readouterr().err
    assert pipe.is_fifo() and link.is_symlink()
    assert run([*MOVE, "--metrics-file", ""]) == 2
    assert "the name of the file is empty" in capsys.readouterr().err


def test_at_the_start_of_a_server_all_is_there_with_zeros(place: Place) -> None:
    place.run().begin()
    found = parsed(place.file)
    assert set(found.values()) == {0.0}
    for name, outcome in (("migrations_total", "in-doubt"), ("drains_total", "interrupted"),
                          ("last_migration_timestamp_seconds", "migrated")):  # fmt: skip
        assert place.sample(name, outcome=outcome) == 0
    assert place.sample("stall_seconds_bucket", le="+Inf") == 0
    place.run().migration(result())
    place.run().begin()
    assert set(parsed(place.file)) == set(found) and place.sample("blackout_seconds_count") == 1


@pytest.mark.parametrize("file", [True, False])
def test_damaged_totals_are_said_at_the_start(
    place: Place, capsys: pytest.CaptureFixture[str], file: bool
) -> None:
    place.state.mkdir()
    path = place.state / "metrics.json"
    path.write_text('{"migrations": {"migrated": -')
    metrics = place.run() if file else Metrics(None, place.state, place.records)
    metrics.begin()
    told = capsys.readouterr().err
    assert told.startswith(f"migrate: what migrates from now on is not counted: {path} cannot be")
    assert "move it away" in told and not place.file.exists()


def test_a_server_begins_with_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it serves, and with damaged totals it serves all the same."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    book, file = ROOT / "playbooks/nightly-drain.yaml", tmp_path / "streamferry.prom"
    seen = []

    async def serve(*_: Any) -> Any:
        seen.append(file.exists())
        return SimpleNamespace(interrupted=[])

    monkeypatch.setattr(serving, "_serve", serve)
    command = ["schedule", "serve", str(book), "--metrics-file", str(file)]
    assert run(command) == 0
    file.unlink()
    (tmp_path / "streamferry/metrics.json").write_text("nonsense")
    assert run(command) == 0
    assert seen == [True, False] and "metrics.json cannot be gone by" in capsys.readouterr().err
