"""Experiments without a lab: what is refused, with one message, and how a journal is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.__main__ import run
from orchestrator.chaos import actions, clocks, network, probes
from orchestrator.chaos.catalogue import activities, shipped
from orchestrator.chaos.experiment import Setup, check
from orchestrator.chaos.report import markdown
from tests.chaos.mutants import EXPERIMENTS, MUTANTS, Mutant, prepare

FILES = sorted(EXPERIMENTS.glob("*.yaml"))
Says = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Says:
    """`migrate chaos ... --json` where no Docker answers: its exit status and what it prints."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")

    def command(*arguments: object) -> tuple[int, dict[str, Any]]:
        status = run(["chaos", *map(str, arguments), "--json"])
        told = capsys.readouterr()
        assert not told.err
        return status, json.loads(told.out)

    return command


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """A file with an experiment that was changed."""

    def make(change: Callable[[Any], object]) -> Path:
        experiment = yaml.safe_load((EXPERIMENTS / "slow-link.yaml").read_text())
        change(experiment)
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return path

    return make


def provider(experiment: Any, step: int = 0) -> Any:
    return experiment["method"][step]["provider"]


WRONG: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "action": (lambda one: provider(one).update(func="slow"), "experiment", "slow"),
    "argument": (lambda one: provider(one)["arguments"].update(speed=1), "experiment", "speed"),
    "module": (lambda one: provider(one).update(module="no.such"), "experiment", "no.such"),
    "host": (lambda one: provider(one)["arguments"].update(parties=["source", "mars"]),
             "lab-host", "mars"),
    "workload": (lambda one: provider(one, 1)["arguments"].update(workload="web"),
                 "chaos-workload", "web"),
    "fault": (lambda one: provider(one, 1)["arguments"].update(faults=["x@source=kill"]),
              "bad-fault", "x@source=kill"),
    "setup": (lambda one: one["controls"][0]["provider"].update(arguments={"sauce": "src"}),
              "experiment", "sauce"),
    "address": (lambda one: one["controls"][0]["provider"].update(
        arguments={"workloads": {"redis": "10.77.0.300"}}), "experiment", "workloads.redis"),
    "method": (lambda one: one.pop("method"), "experiment", "method"),
    "method's type": (lambda one: one.update(method="migrate"), "experiment", ""),
    "control": (lambda one: one.pop("controls"), "chaos-session", "orchestrator.chaos.control"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_anything_is_touched(
    says: Says, changed: Callable[[Callable[[Any], object]], Path], what: str
) -> None:
    change, code, part = WRONG[what]
    status, answer = says("run", changed(change))
    assert (status, answer["outcome"]) == (2, "refused"), answer
    assert answer["error"]["code"] == code and part in answer["error"]["message"]
    assert answer["error"]["hint"]


@pytest.mark.parametrize("name", ["none.yaml", "text.txt", "broken.yaml", "list.json", "bad.json"])
def test_a_file_that_is_no_experiment(says: Says, tmp_path: Path, name: str) -> None:
    contents = {"text.txt": "x", "broken.yaml": "a: b: c", "list.json": "[1]", "bad.json": "{"}
    path = tmp_path / name
    if name in contents:
        path.write_text(contents[name])
    for verb in ("run", "list"):
        if (verb, name) == ("list", "text.txt"):
            continue
        status, answer = says(verb, path)
        assert status == 2 and answer["error"]["code"] == "experiment", answer
        assert str(path) in answer["error"]["message"]


def test_why_it_is_none_is_said_in_words(says: Says, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    for path, word in (("deep.yaml", "nested too deeply"), ("empty.yaml", "it is empty"),
                       ("", "it is no file")):  # fmt: skip
        _, answer = says("run", tmp_path / path)
        assert word in answer["error"]["message"], answer
    _, answer = says("run", "")
    assert answer["error"]["message"].startswith("'' is no experiment")


def test_where_no_lab_is_up(says: Says) -> None:
    status, answer = says("run", EXPERIMENTS / "clocks-apart.yaml")
    assert (status, answer["outcome"], answer["left"]) == (3, "refused", []), answer
    assert answer["error"]["code"] == "lab-down" and "make lab" in answer["error"]["hint"]


def test_files_that_cannot_be_written_are_found_first(says: Says, tmp_path: Path) -> None:
    for option in ("--journal", "--report"):
        status, answer = says("run", FILES[0], option, tmp_path / "no" / "file")
        assert status == 2 and "no/file" in answer["error"]["message"]


def test_all_that_is_shipped_is_listed(says: Says) -> None:
    status, answer = says("list")
    assert status == 0 and len(answer["experiments"]) == len(FILES) >= 12
    assert shipped().resolve() == EXPERIMENTS
    assert all(one["title"] and one["tags"] for one in answer["experiments"])


def test_one_that_is_wrong_does_not_hide_the_others(says: Says, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("foo: [")
    (tmp_path / "good.yaml").write_text(FILES[0].read_text())
    status, answer = says("list", tmp_path)
    assert status == 2 and "bad.yaml" in answer["error"]["message"]
    assert [Path(one["file"]).name for one in answer["experiments"]] == ["good.yaml"]


def test_activities_are_listed_with_what_they_do(says: Says) -> None:
    _, answer = says("list", "--activities")
    names = {one["name"] for one in answer["activities"]}
    assert names == {*actions.__all__, *probes.__all__} and len(activities()) == len(names)
    assert all(one["about"] for one in answer["activities"])


@pytest.mark.parametrize("path", FILES, ids=lambda one: one.stem)
def test_an_experiment_is_valid_and_undone(path: Path) -> None:
    """As the Chaos Toolkit reads it; its rollbacks come whatever happens, also without us."""
    from orchestrator.chaos.running import load

    experiment = load(str(path))
    arguments = experiment["controls"][0]["provider"].get("arguments", {})
    check(experiment, Setup.model_validate(arguments))
    assert experiment["runtime"]["rollbacks"]["strategy"] == "always"
    assert experiment["rollbacks"][0]["provider"]["func"] == "restore"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.experiment)
def test_a_mutant_is_still_one(tmp_path: Path, mutant: Mutant) -> None:
    """Each edit finds its place, what it makes is Python, and its probe is the experiment's."""
    code, file = prepare(mutant, tmp_path)
    assert mutant.edits or mutant.hostile
    for edit in mutant.edits:
        compile((code / edit.file).read_text(), edit.file, "exec")
    probes = yaml.safe_load(file.read_text())["steady-state-hypothesis"]["probes"]
    assert mutant.tells in [one["name"] for one in probes]


def test_a_cut_drops_both_ways_at_both_ends() -> None:
    lines = network.rules(["10.0.0.1", "fd00::1"], network.verdict())
    assert [line.split(" ", 4)[4] for line in lines] == [
        "in ip saddr 10.0.0.1 drop", "out ip daddr 10.0.0.1 drop",
        "in ip6 saddr fd00::1 drop", "out ip6 daddr fd00::1 drop",
    ]  # fmt: skip
    assert network.verdict(percent=2.5) == "numgen random mod 10000 < 250 drop"
    assert "rate over 256 kbytes/second" in network.verdict(rate_kib=256)


def test_a_clock_is_shifted_for_python_alone(tmp_path: Path) -> None:
    (tmp_path / "clock.pth").write_text(clocks.line(-3600.5))
    code = (
        f"import site, time as t; site.addsitedir({str(tmp_path)!r}); "
        "print(t.time() - t.clock_gettime(0), (t.time_ns() - t.clock_gettime_ns(0)) / 1e9,"
        "t.monotonic() - t.clock_gettime(1), (t.monotonic_ns() - t.clock_gettime_ns(1)) / 1e9)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [round(float(one), 1) for one in told.stdout.split()] == [-3600.5] * 4


def test_a_report_keeps_hostile_text_in_its_cell() -> None:
    step = {
        "activity": {"name": "a | b"}, "start": "2026-01-02T03:04:05.678901+00:00", "duration": 1.5,
        "status": "succeeded", "output": "x|<b>\n# y",
    }  # fmt: skip
    journal = {
        "experiment": {
            "title": "T", "description": "D", "steady-state-hypothesis": {
                "title": "H", "probes": [{"name": "p", "tolerance": "nothing"}],
            },
        },
        "start": "2026", "duration": 2.0,
        "steady_states": {"before": None, "after": {"probes": [
            {"activity": {"name": "p"}, "status": "succeeded", "output": "ECONNRESET",
             "tolerance_met": False},
        ]}},
        "run": [step], "rollbacks": [],
    }  # fmt: skip
    page = markdown(journal, "deviated", ["why"])
    assert "| 03:04:05.678 | 1.50 s | a \\| b | succeeded | x\\|&lt;b> # y |" in page
    assert "| p | nothing |  | **NOT MET** ECONNRESET |" in page and "> why" in page


def plain(tmp_path: Path, probe: str, action: str = "true") -> Path:
    """An experiment of the toolkit's own kinds of activities; `probe` and `action` are commands."""
    path = tmp_path / "plain.yaml"
    activities = [
        {"name": name, "type": kind, "provider": {"type": "process", "path": "sh",
         "arguments": ["-c", command]}}
        for name, kind, command in (("look", "probe", probe), ("act", "action", action))
    ]  # fmt: skip
    path.write_text(yaml.safe_dump({
        "title": "T", "description": "D", "method": activities[1:], "rollbacks": [
            {**activities[1], "provider": {"type": "process", "path": "touch",
             "arguments": [str(tmp_path / "undone")]}},
        ],
        "steady-state-hypothesis": {"title": "H", "probes": [{**activities[0], "tolerance": 0}]},
    }))  # fmt: skip
    return path


@pytest.mark.parametrize(("probe", "status", "outcome"), [
    ("true", 0, "held"), ("exit 3", 1, "deviated"), ("test ! -e FLAG", 1, "deviated"),
])  # fmt: skip
def test_what_came_of_an_experiment(
    says: Says, tmp_path: Path, probe: str, status: int, outcome: str
) -> None:
    flag = tmp_path / "flag"
    file = plain(tmp_path, probe.replace("FLAG", str(flag)), f"touch {flag}")
    written = tmp_path / "journal.json", tmp_path / "page.md"
    told, answer = says("run", file, "--journal", written[0], "--report", written[1])
    assert (told, answer["outcome"]) == (status, outcome), answer
    assert (tmp_path / "undone").exists(), "rollbacks always run"
    assert flag.exists() == (probe != "exit 3"), "the method is not begun where nothing is steady"
    journal = json.loads(written[0].read_text())
    assert journal["chaoslib-version"] and journal["experiment"]["title"] == "T"
    assert written[1].read_text().startswith(f"# T\n\nD\n\n**{outcome}**")
    if status:
        assert answer["error"]["code"] == "chaos-deviated" and "look" in answer["error"]["message"]


def test_a_person_is_told_each_step(
    says: Says, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chaos", "run", str(plain(tmp_path, "true"))]) == 0
    told = capsys.readouterr()
    assert "Probe: look" in told.out and "Action: act" in told.out
    assert told.out.splitlines()[-1] == "T: the steady state holds" and not told.err
    assert run(["chaos", "run", "-q", str(plain(tmp_path, "exit 1"))]) == 1
    told = capsys.readouterr()
    assert not told.out and "T: the steady state is not met: look is" in told.err


def test_the_page_has_each_experiment() -> None:
    page = (EXPERIMENTS.parents[1] / "docs/chaos.md").read_text()
    listed = re.findall(r"^\| ([a-z]+(?:-[a-z]+)+) \|", page, re.M)
    assert sorted(listed) == [path.stem for path in FILES]
    named = {*re.findall(r"`([a-z_]+)`", page)}
    assert {*actions.__all__, *probes.__all__} <= named, "each activity is named"
