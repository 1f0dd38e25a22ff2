"""Playbooks: those shipped are right, and each thing that is wrong has its place and a fix."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.plan import MEMORY_MODES
from orchestrator.__main__ import run
from orchestrator.draining.survey import options_of
from orchestrator.plan import Options
from orchestrator.playbook import rules
from orchestrator.playbook.known import Known
from orchestrator.playbook.loading import load
from orchestrator.playbook.model import Drain, Hosts, Migrate, Playbook
from orchestrator.playbook.quantities import seconds, size, spelt
from orchestrator.playbook.reading import Checked, read_hosts, read_playbook
from orchestrator.playbook.yaml_source import read

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "playbooks").glob("*-*.yaml"))
SSH_CONFIG = str(ROOT / "lab/ssh_config")

HEAD = "playbook: 1\ndrains:\n  - node: src\n    to: [dst, spare]\n"
WORKLOADS = "    workloads:\n"


def workload(name: str, *more: str) -> str:
    lines = [f"      - name: {name}", f"        select: {{command: {name}}}"]
    return "\n".join([*lines, *(f"        {one}" for one in more)]) + "\n"


TWO = HEAD + WORKLOADS + workload("one") + workload("two")


def known() -> Known:
    return Known([SSH_CONFIG], resolve=lambda name: False)


@pytest.fixture
def check(tmp_path: Path) -> Any:
    def checked(text: str) -> Checked[Playbook]:
        file = tmp_path / "book.yaml"
        file.write_text(text)
        return read_playbook(str(file), known())

    return checked


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_those_that_are_shipped_are_right(path: Path) -> None:
    loaded = load(str(path), None, SSH_CONFIG)
    assert [one.place(p) + p.message for one in loaded.wrong for p in one.problems] == []
    assert loaded.playbook is not None and loaded.playbook.description
    schema = json.loads((ROOT / "docs/playbook.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_four_are_shipped_and_the_inventory_is_right() -> None:
    names = {"migrate-one", "drain-node", "nightly-drain", "rolling-reboot"}
    assert {path.stem for path in SHIPPED} == names
    path = ROOT / "playbooks/hosts.yaml"
    checked = read_hosts(str(path))
    assert checked.problems == [] and checked.value is not None
    schema = json.loads((ROOT / "docs/hosts.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


WRONG = {
    "unknown-key": (HEAD + "    max_paralel: 2\n", 5, "drains[0].max_paralel",
                    "no key `max_paralel`", "Did you mean `max_parallel`?"),
    "unknown-key-deep": (TWO.replace("{command: two}", "{comand: two}"), 9,
                         "drains[0].workloads[1].select.comand", "no key `comand`", "`command`"),
    "missing-key": ("playbook: 1\ndrains:\n  - node: src\n", 3, "drains[0]", "`to` is missing", ""),
    "wrong-type": (HEAD + "    max_parallel: two\n", 5, "drains[0].max_parallel",
                   "must be a whole number, not 'two'", ""),
    "text-for-a-number": (HEAD + '    max_parallel: "2"\n', 5, "drains[0].max_parallel",
                          "a whole number", ""),
    "number-for-text": (HEAD.replace("src", "12"), 3, "drains[0].node", "must be text",
                        'Quote it: "12".'),
    "map-for-a-list": (HEAD.replace("[dst, spare]", "{dst: 1}"), 4, "drains[0].to", "a list",
                       ""),
    "wrong-choice": (HEAD + "    on_failure: goon\n", 5, "drains[0].on_failure",
                     "not one of go-on, stop", "Did you mean `go-on`?"),
    "key-twice": (HEAD + "    to: [dst]\n", 5, "drains[0].to", "given twice, first in line 4",
                  "Take one"),
    "norway": (HEAD + "    cordon: no\n", 5, "drains[0].cordon", "`no` is true or false",
               "Write true or false"),
    "octal": (HEAD + "    max_parallel: 010\n", 5, "drains[0].max_parallel", "`010`", "Quote it"),
    "sexagesimal": (HEAD + "    max_parallel: 1:30\n", 5, "drains[0].max_parallel", "`1:30`", ""),
    "date": (HEAD + "    reason: 2026-11-26\n", 5, "drains[0].reason", "date", "Quote it"),
    "no-value": (HEAD + "    budgets:\n", 5, "drains[0].budgets", "no value", "leave the key out"),
    "anchor": (HEAD.replace("src", "&n src"), 3, "drains[0].node", "the anchor `&n`", "Leave it"),
    "merge-key": (HEAD + "    <<: {max_parallel: 2}\n", 5, "drains[0].<<", "merge keys", ""),
    "tag": (HEAD + "    reason: !!python/name:os.system x\n", 5, "drains[0].reason",
            "the tag `!!python/name:os.system`", "Leave it"),
    "star": ("playbook: 1\ndrains: []\nschedule:\n  cron: * * * * *\n", 4, "", "not YAML",
             "Quote a value that begins with `*`"),
    "tab": ("playbook: 1\n\tdrains: []\n", 2, "", "not YAML", "tabs"),
    "two-documents": (HEAD + "---\n" + HEAD, 5, "", "not YAML", ""),
    "empty": ("", 1, "", "the file is empty", ""),
    "a-list": ("- 1\n", 1, "", "must be a map", ""),
    "version": (HEAD.replace("playbook: 1", "playbook: 2"), 1, "playbook", "the number 1, not 2",
                ""),
    "nothing-selected": (TWO.replace("{command: two}", "{}"), 9, "drains[0].workloads[1].select",
                         "nothing is selected", ""),
    "expression": (TWO.replace("{command: two}", "{command: '(two'}"), 9,
                   "drains[0].workloads[1].select.command", "not a regular expression", ""),
    "two-checks": (HEAD + WORKLOADS + workload("one", "health: {tcp: {port: 1}, command: x}"), 8,
                   "drains[0].workloads[0].health", "one of tcp, http and command", ""),
    "duration": (HEAD + WORKLOADS + workload("one", "limits: {per_gib: 30}"), 8,
                 "drains[0].workloads[0].limits.per_gib", "with its unit", ""),
    "directory": (HEAD + WORKLOADS + workload("one", "migrate: {images_dir: /run/../x}"), 8,
                  "drains[0].workloads[0].migrate.images_dir", "without `.` and `..`", ""),
    "blackout": (HEAD + WORKLOADS + workload("one", "migrate: {max_blackout: 2h}"), 8,
                 "drains[0].workloads[0].migrate.max_blackout", "no longer than 1h", ""),
    "rounds": (HEAD + WORKLOADS + workload("one", "migrate: {max_rounds: 0}"), 8,
               "drains[0].workloads[0].migrate.max_rounds", "only for memory: post-copy", ""),
    "sync": (HEAD + WORKLOADS + workload("one", "migrate: {sync: [/proc/1]}"), 8,
             "drains[0].workloads[0].migrate.sync[0]", "cannot be brought", ""),
    "unknown-host": (HEAD.replace("spare", "spar"), 4, "drains[0].to[1]", "no host is named `spar`",
                     "Did you mean `spare`?"),
    "unknown-node": (HEAD.replace("src", "elsewhere"), 3, "drains[0].node", "`elsewhere`",
                     "ssh configuration"),
    "no-host-at-all": (HEAD.replace("spare", "'a:b:c'"), 4, "drains[0].to[1]", "brackets", ""),
    "unknown-label": (HEAD.replace("spare", "zone=q"), 4, "drains[0].to[1]", "label `zone=q`",
                      "inventory"),
    "onto-itself": (HEAD.replace("spare", "src"), 4, "drains[0].to[1]", "the node itself", ""),
    "twice-the-same": (HEAD.replace("spare", "dst"), 4, "drains[0].to[1]", "twice", ""),
    "to-elsewhere": (HEAD + WORKLOADS + workload("one", "to: [dts]"), 8,
                     "drains[0].workloads[0].to[0]", "not among", "Did you mean `dst`?"),
    "same-name": (HEAD + WORKLOADS + workload("one") * 2, 8, "drains[0].workloads[1].name",
                  "two workloads are named `one`", "Rename"),
    "after-nobody": (HEAD + WORKLOADS + workload("first") + workload("two", "after: [frist]"), 10,
                     "drains[0].workloads[1].after[0]", "no workload is named `frist`",
                     "Did you mean `first`?"),
    "circle": (HEAD + WORKLOADS + workload("a", "after: [c]") + workload("b", "after: [a]")
               + workload("c", "after: [b]"), 8, "drains[0].workloads[0].after",
               "a circle: a after c after b after a", "Take one"),
    "after-itself": (HEAD + WORKLOADS + workload("a", "after: [a]"), 8,
                     "drains[0].workloads[0].after", "a circle: a after a", ""),
    "budget-of-nothing": (TWO + "    budgets: [{group: cache, at_most: 0}]\n", 10,
                          "drains[0].budgets[0].at_most", "0 is too small: it is at least 1", ""),
    "budget-of-nobody": (HEAD + WORKLOADS + workload("a", "group: cache")
                         + "    budgets: [{group: cash, at_most: 1}]\n", 9,
                         "drains[0].budgets[0].group", "no workload is of the group `cash`",
                         "Did you mean `cache`?"),
    "two-budgets": (HEAD + WORKLOADS + workload("a", "group: c")
                    + "    budgets: [{group: c, at_most: 1}, {group: c, at_most: 2}]\n", 9,
                    "drains[0].budgets[1].group", "two budgets", ""),
    "cron-never": (HEAD + "schedule: {cron: 0 0 30 2 *}\n", 5, "schedule.cron", "never fires", ""),
    "cron-nonsense": (HEAD + "schedule: {cron: 0 25 * * *}\n", 5, "schedule.cron", "cannot be read",
                      ""),
    "cron-fields": (HEAD + "schedule: {cron: '@daily'}\n", 5, "schedule.cron", "1 fields, not five",
                    ""),
    "time-zone": (HEAD + "schedule: {cron: 0 3 * * *, time_zone: Europe/Berlim}\n", 5,
                  "schedule.time_zone", "Europe/Berlim", "Did you mean `Europe/Berlin`?"),
    "jitter": (HEAD + "schedule: {cron: '*/5 * * * *', jitter: 6m}\n", 5, "schedule.jitter",
               "5m apart", ""),
    "window": (HEAD + "schedule: {cron: 0 3 * * *, jitter: 6m, window: 5m}\n", 5,
               "schedule.window", "may be over", ""),
    "endless-number": (HEAD + f"    max_parallel: {'1' * 5000}\n", 5, "drains[0].max_parallel",
                       "a number of 5000 characters", ""),
    "half-a-character": (HEAD + '    reason: "a\\ud800"\n', 5, "drains[0].reason",
                         "half of a character", "Write the character itself"),
    "half-a-character-in-a-key": (HEAD + '    "\\ud800": 1\n', 5, "drains[0].\\ud800",
                                  "the key `\\ud800` has half", "Write the character itself"),
    "endless-size": (HEAD + WORKLOADS
                     + workload("one", f"migrate: {{bandwidth: {'9' * 400}GiB}}"), 8,
                     "drains[0].workloads[0].migrate.bandwidth", "is more than 1048576TiB", ""),
    "run-and-no-cordon": (HEAD + "    cordon: false\n    when_empty: {run: [reboot]}\n", 6,
                          "drains[0].when_empty", "not cordoned", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_has_its_place_and_its_fix(check: Any, name: str) -> None:
    text, line, path, message, hint = WRONG[name]
    checked = check(text)
    assert checked.value is None
    found = checked.problems[0]
    assert (found.line, found.path) == (line, path), found
    assert message in found.message and hint in found.hint, found
    assert f"book.yaml:{line}:" in checked.place(found)


def test_the_two_above_are_right_but_for_that(check: Any) -> None:
    assert check(TWO).problems == [] and check(HEAD).problems == []


def test_all_problems_are_found_at_once(check: Any) -> None:
    checked = check(HEAD + "    cordn: true\n    max_parallel: x\n    reason: 5\n")
    assert [one.line for one in checked.problems] == [5, 6, 7]
    assert "(and 2 more" in checked.error().message


@given(st.text() | st.from_regex(r"[-:{}\[\]&*!|>'\"%@` \nab0-9.~<]{0,40}", fullmatch=True))
def test_whatever_stands_there_is_read_or_a_problem(text: str) -> None:
    source = read(text)
    assert source.value is None or not source.problems


def test_what_is_nested_or_large_without_end() -> None:
    assert "deeply" in read("[" * 5000).problems[0].message
    assert "deeply" in read("[" * 50 + "]" * 50).problems[0].message
    assert "larger" in read("a" * (2 << 20)).problems[0].message
    bomb = "a: &a [x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
    )
    assert "the anchor `&a`" in read(bomb).problems[0].message
    assert "not YAML" in read(r'a: "\UFFFFFFFF"').problems[0].message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in read_playbook(str(tmp_path / "none")).problems[0].message
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    assert "not text" in read_playbook(str(tmp_path / "binary")).problems[0].message
    assert "is not the name of a file" in read_playbook("a\0b").problems[0].message


def test_what_is_no_regular_file_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        assert "not a regular file" in read_playbook(str(path)).problems[0].message


def test_of_a_file_without_end_little_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 256 KiB" in read_playbook(str(tmp_path / "large.yaml")).problems[0].message


def test_a_playbook_survives_being_written_down() -> None:
    path = str(ROOT / "playbooks/drain-node.yaml")
    book = read_playbook(path).value
    assert book is not None
    for drain in book.drains:
        again = Drain.model_validate(json.loads(drain.model_dump_json(exclude_unset=True)))
        assert again == drain
    hosts = read_hosts(str(ROOT / "playbooks/hosts.yaml")).value
    assert hosts is not None
    assert Hosts.model_validate(json.loads(hosts.model_dump_json(exclude_unset=True))) == hosts


def test_a_migration_can_be_told_what_the_command_can() -> None:
    modes = typing.get_args(Migrate.model_fields["memory"].annotation)
    assert set(modes) == {"auto", *MEMORY_MODES}
    options = {one.name for one in dataclasses.fields(Options)}
    asked = {"max_blackout", "images_dir", "address", "memory_mode", "max_rounds",
             "missing_options", "bandwidth", "sync"}  # fmt: skip
    # What is not for a user, or is known by the drain itself.
    own = {"replay", "boundary", "returns", "faults", "link_hosts"}
    assert options == asked | own and len(Migrate.model_fields) == len(asked) + 1  # `sync` is two
    assert options_of(Migrate()) == Options()


@given(st.floats(0.001, 366 * 86400.0))
def test_durations_there_and_back(duration: float) -> None:
    assert seconds(spelt(duration)) == duration


@given(st.from_regex(r"([0-9]{1,4}(\.[0-9]{1,30})?(ms|[smhd])){1,4}", fullmatch=True))
def test_a_duration_that_is_taken_can_be_written_and_read_again(text: str) -> None:
    try:
        duration = seconds(text)
    except ValueError:
        return
    assert seconds(spelt(duration)) == duration


def test_durations_are_spelt_as_a_person_would() -> None:
    told = {5400.0: "1h30m", 90.0: "1m30s", 0.5: "500ms", 1.0005: "1s0.5ms", 30: "30s", 0: "0s"}
    assert {one: spelt(one) for one in told} == told


@pytest.mark.parametrize(
    "text",
    ["30", "", "s", "1 h", "-5s", "0s", "5x", "99999d", "0.1ms", "9" * 400 + "s", None, 5, True],
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="duration|between"):
        seconds(text)


def test_sizes() -> None:
    assert (size("4GiB"), size("1.5 MiB"), size("0B")) == (4 << 30, 3 << 19, 0)
    assert size(f"{(1 << 60) - 1}B") == (1 << 60) - 1
    for text in ("4", "4GB", "", None, 4, "9" * 5000 + "TiB"):
        with pytest.raises(ValueError, match="size|is more than"):
            size(text)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef")), min_size=1))
def test_a_circle_is_found_exactly_where_there_is_one(after: dict[str, list[str]]) -> None:
    after = {name: after.get(name, []) for name in "abcdef"}
    found = rules.find_cycle(after)
    for one, other in zip(found, [*found[1:], *found[:1]], strict=True):
        assert other in after[one]
    left = dict(after)
    while free := [name for name, before in left.items() if not set(before) & set(left)]:
        for name in free:
            del left[name]
    assert bool(found) == bool(left)


def test_hosts_of_the_ssh_configuration(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host inner *.example.org\n")
    config = tmp_path / "config"
    config.write_text(f"Include {tmp_path}/mor*\nHost = web !bad\n  User root\nHost *\n  Port 22\n")
    hosts = Known([str(config)], resolve=lambda name: name == "dns")
    for name in ("web", "root@web:22", "inner", "a.example.org", "dns"):
        assert hosts.problem(name) == "", name
    assert hosts.problem("other") and hosts.near("innner") == "inner"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = str(ROOT / "playbooks/nightly-drain.yaml")
    assert run(["playbook", "check", good, "-F", SSH_CONFIG]) == 0
    assert capsys.readouterr().out == f"{good}: right, 1 drain\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text(WRONG["unknown-key"][0])
    assert run(["playbook", "check", str(bad), "-F", SSH_CONFIG]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"{bad}:5:5: drains[0].max_paralel: there is no key" in told.err
    assert "Did you mean" in told.err
    assert run(["playbook", "check", good, str(bad), "-F", SSH_CONFIG, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert [one["ok"] for one in answer["files"]] == [True, False]
    assert answer["files"][1]["problems"][0]["line"] == 5
    assert answer["error"]["code"] == "playbook-invalid"


def test_an_inventory_that_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text("inventory: 1\nhosts:\n  src:\n    capacity: {memory: 4GB}\n")
    good = str(ROOT / "playbooks/nightly-drain.yaml")
    assert run(["playbook", "check", good, "--hosts", str(hosts), "-F", SSH_CONFIG]) == 2
    told = capsys.readouterr().err
    assert f"{hosts}:4:24: hosts.src.capacity.memory: write a size" in told
