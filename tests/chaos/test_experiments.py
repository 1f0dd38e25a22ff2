"""The experiments of playbooks/chaos: each holds, and each of their mutants is found.

`make chaos` asks for all; else there are some of both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.mutants import BY_EXPERIMENT, EXPERIMENTS, MUTANTS, Mutant, prepare, run
from tests.support.lab import HOSTS, ROOT, SERVICE, SSH_CONFIG, Lab, until

ALL = os.environ.get("STREAMFERRY_CHAOS") == "all"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
ALWAYS = ["agent-killed-in-blackout", "power-loss-in-doubt"]
ALWAYS_BROKEN = ["clocks-apart", "record-corrupted"]


def test_each_has_a_mutant() -> None:
    assert sorted(BY_EXPERIMENT) == NAMES and len(NAMES) >= 12 and len(MUTANTS) == len(NAMES)


@pytest.mark.parametrize("name", NAMES if ALL else ALWAYS)
def test_an_experiment(lab: Lab, tmp_path: Path, name: str) -> None:
    done = run(EXPERIMENTS / f"{name}.yaml", tmp_path / "journal.json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["outcome"], answer["left"]) == (0, "held", []), answer
    journal = json.loads((tmp_path / "journal.json").read_text())
    assert journal["status"] == "completed" and not journal["deviated"]
    assert all(one["status"] == "succeeded" for one in journal["run"] + journal["rollbacks"])


@pytest.mark.parametrize(
    "mutant",
    [one for one in MUTANTS if ALL or one.experiment in ALWAYS_BROKEN],
    ids=lambda one: one.experiment,
)
def test_a_mutant_is_found(lab: Lab, tmp_path: Path, mutant: Mutant) -> None:
    code, file = prepare(mutant, tmp_path)
    try:
        done = run(file, tmp_path / "journal.json", code)
    finally:
        lab.clear()  # what a broken product leaves is not for the others to find
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "deviated", (mutant.breaks, answer["error"])
    assert [one["probe"] for one in answer["after"] if not one["met"]] == [mutant.tells], answer
    assert all(one["met"] for one in answer["before"]), answer
    assert done.returncode in (1, 4)


def test_the_chaos_toolkit_runs_one_unchanged(lab: Lab, tmp_path: Path) -> None:
    journal = tmp_path / "journal.json"
    done = subprocess.run(
        [Path(sys.executable).with_name("chaos"), "--no-version-check", "--no-log-file", "run",
         "--journal-path", journal, EXPERIMENTS / "record-corrupted.yaml"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = json.loads(journal.read_text())
    assert done.returncode == 0 and told["status"] == "completed", done.stderr
    assert told["steady_states"]["after"]["steady_state_met"] and not told["deviated"]
    assert [one["status"] for one in told["rollbacks"]] == ["succeeded"]


def test_interrupted_it_undoes_what_it_has_begun(lab: Lab, tmp_path: Path) -> None:
    """Ctrl-C while the hosts are slowed down and a process is on its way, for long enough."""
    limit = '--max-blackout, "{}"'
    text = (EXPERIMENTS / "slow-link.yaml").read_text()
    assert limit.format(2) in text
    slower = tmp_path / "slower.yaml"
    slower.write_text(text.replace(limit.format(2), limit.format(60)))
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "chaos", "run", slower, "-F", SSH_CONFIG, "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: lab.entered("src", "frozen"), 60, "the process is on its way")
    assert "chaos_cut" in lab.run("src", "nft list tables")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    answer = json.loads(output)
    assert (process.returncode, answer["outcome"], answer["left"]) == (3, "interrupted", [])
    for host in (*HOSTS, "client"):
        assert "chaos" not in lab.run(host, "nft list tables")
        assert SERVICE not in lab.addresses(host)
    for host in HOSTS:
        assert not lab.leftovers(host) and not lab.run(host, "pgrep redis-server || true")
    assert not lab.run("client", "pgrep -f '[r]edis_' || true")


def test_nothing_is_begun_where_the_lab_is_in_use(lab: Lab, redis: int) -> None:
    command = [sys.executable, "-m", "orchestrator", "chaos", "run", "--json"]
    done = subprocess.run(
        [*command, EXPERIMENTS / "clocks-apart.yaml", "-F", SSH_CONFIG],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["outcome"]) == (3, "refused"), answer
    assert answer["error"]["code"] == "lab-busy" and SERVICE in answer["error"]["message"]
    assert lab.state("src", redis) in ("S", "R")
