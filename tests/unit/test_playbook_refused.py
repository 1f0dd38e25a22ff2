"""What a playbook might be taken for and is not: each is refused with its place and a fix."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import run
from orchestrator.cli import migrate, verb_of
from orchestrator.playbook import loading, reading
from orchestrator.playbook.reading import read_hosts, read_playbook
from orchestrator.playbook.yaml_source import MAX_BYTES, MAX_VALUES, read
from tests.unit.test_playbook import HEAD, SSH_CONFIG, WORKLOADS, check, known, workload

__all__ = ["check"]

ONE = HEAD + WORKLOADS + workload("one")


def version(text: str) -> str:
    return HEAD.replace("playbook: 1", f"playbook: {text}")


def at(key: str, value: str) -> tuple[str, str]:
    """A workload with something at a path like "migrate.sync", and the path as it is told."""
    text, path = value, "drains[0].workloads[0]"
    *outer, last = key.split(".")
    for name in [last, *reversed(outer[1:])]:
        text = f"{{{name}: {text}}}"
    if outer and outer[0] == "select":
        return ONE.replace("{command: one}", text), f"{path}.{key}"
    return (
        f"{ONE}        {outer[0] if outer else last}: {text if outer else value}\n",
        f"{path}.{key}",
    )


WRONG = {
    # a boolean and a float are numbers to Python
    "version-true": (version("true"), "playbook", "the number 1, not true"),
    "version-float": (version("1.0"), "playbook", "not 1.0"),
    "version-text": (version('"1"'), "playbook", "not '1'"),
    "version-huge": (version("9" * 90), "playbook", "not 999"),
    "hosts-true": (HEAD + "hosts: true\n", "hosts", "must be text, not true"),
    "true-for-a-number": (HEAD + "    max_parallel: true\n", "drains[0].max_parallel",
                          "a whole number, not true"),
    "true-for-a-port": (*at("select.port", "true"), "a whole number, not true"),
    "number-for-true": (HEAD + "    cordon: 1\n", "drains[0].cordon", "true or false, not 1"),
    "float": (HEAD + "    max_parallel: 2.0\n", "drains[0].max_parallel", "not 2.0"),
    "nan": (HEAD + "    max_parallel: .nan\n", "drains[0].max_parallel", "`.nan`"),
    "negative": (HEAD + "    max_parallel: -1\n", "drains[0].max_parallel", "-1 is too small"),
    "huge": (HEAD + f"    max_parallel: {'9' * 30}\n", "drains[0].max_parallel", "is too large"),
    # ports, addresses, URLs
    "port": (*at("select.port", "99999"), "99999 is too large: it is at most 65535"),
    "port-0": (*at("select.port", "0"), "0 is too small: it is at least 1"),
    "port-of-a-check": (*at("health.tcp.port", "99999"), "99999 is too large"),
    "port-of-a-host": (HEAD.replace("spare", "'spare:99999'"), "drains[0].to[1]", "not a port"),
    "url-port": (*at("health.http", "'http://a:99999/'"), "not an http:// URL: Port out of range"),
    "url-no-host": (*at("health.http", "'http://:80/'"), "not an http:// URL"),
    "url-user": (*at("health.http", "'http://u:p@a/'"), "no password is sent"),
    "url-control": (*at("health.http", '"http://a/\\x01"'), "not an http:// URL"),
    # what excludes each other
    "stop-rounds": (at("migrate", "{memory: stop, max_rounds: 3}")[0],
                    "drains[0].workloads[0].migrate.max_rounds", "memory: stop has no rounds"),
    # nothing, or next to it
    "no-workloads": (HEAD + "    workloads: []\n", "drains[0].workloads", "the list is empty"),
    "no-destination": (HEAD.replace("dst, spare", ""), "drains[0].to", "the list is empty"),
    "empty-node": (HEAD.replace("src", "''"), "drains[0].node", "this is empty"),
    "empty-command": (*at("select.command", "''"), "this is empty"),
    "blank-command": (*at("select.command", "'  '"), "only blanks"),
    "blank-check": (*at("health.command", "' '"), "only blanks"),
    "blank-unit": (*at("select.unit", "' '"), "not the name of a unit"),
    "null-byte": (*at("health.command", '"a\\0b"'), "has the character '\\x00'"),
    "path-of-two-lines": (*at("select.pid_file", '"/a\\nb"'), "not an absolute path"),
    "reason-of-two-lines": (HEAD + '    reason: "a\\nb"\n', "drains[0].reason", "not one line"),
    # twice
    "sync-twice": (*at("migrate.sync", "[/srv/a, /srv/a]"), "'/srv/a' is in the list twice"),
    "address-twice": (*at("migrate.addresses", "[10.0.0.1, 10.0.0.1]"), "in the list twice"),
    "selects-the-same": (ONE + workload("two").replace("{command: two}", "{command: one}"),
                         "drains[0].workloads[1].select", "selects what `one` does"),
    # tags, anchors, keys
    "tag": (HEAD.replace("src", "!foo src"), "drains[0].node", "the tag `!foo` is not taken"),
    "tag-of-text": (HEAD.replace("src", "!!str src"), "drains[0].node", "the tag `!!str`"),
    "tag-of-quoted": (HEAD.replace("src", "!!str 'src'"), "drains[0].node", "the tag `!!str`"),
    "tag-of-a-number": (HEAD + "    max_parallel: !!int 2\n", "drains[0].max_parallel", "`!!int`"),
    "tag-of-a-list": (HEAD.replace("[", "!!seq ["), "drains[0].to", "the tag `!!seq`"),
    "tag-of-nothing": (HEAD.replace("src", "! src"), "drains[0].node", "the tag `!`"),
    "tag-of-a-key": (HEAD.replace("node:", "!foo node:"), "drains[0].node", "the tag `!foo`"),
    "tag-python": ("!!python/object/apply:os.system [id]\n", "", "`!!python/object/apply:os.sys"),
    "alias": (HEAD.replace("spare", "*a"), "drains[0].to[1]", "the alias `*a` is not taken"),
    "list-as-a-key": (HEAD + "    [a, b]: 1\n", "drains[0].[a, b]", "and `[a, b]` is a list"),
    "map-as-a-key": (HEAD + "    ? {a: b}\n    : 1\n", "drains[0].{a: b}", "`{a: b}` is a map"),
    "empty-key": (HEAD + "    '': 1\n", "drains[0].", "no key before the colon"),
    "comma": (HEAD + "schedule: {cron: 0 0 1,15 * *}\n", "schedule.15 * *", "has no value"),
    # hosts
    "option-as-a-node": (HEAD.replace("src", "-oProxyCommand=id"), "drains[0].node",
                         "'-oProxyCommand=id' is not a host name: it begins with a dash"),
    "option-as-a-host": (HEAD.replace("spare", "-oProxyCommand=id"), "drains[0].to[1]",
                         "it begins with a dash"),
    "label-as-a-node": (HEAD.replace("src", "zone=b"), "drains[0].node", "a node is one host"),
    "label-of-nothing": (HEAD.replace("spare", "=b"), "drains[0].to[1]", "is not a label"),
    "control": (HEAD + "    reason: \a\n", "", "the character U+0007"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_once_with_its_place_and_a_fix(check: Any, name: str) -> None:
    text, path, message = WRONG[name]
    checked = check(text)
    assert checked.value is None
    (found,) = checked.problems
    assert found.path == path and message in found.message, found
    assert found.line and found.column and found.hint, found


def test_what_they_were_made_of_is_right(check: Any) -> None:
    assert check(ONE).problems == []
    for key, value in [("select.port", "80"), ("health.http", "'http://[::1]:80/a?b'"),
                       ("health.command", '"a\\n\\tb"'), ("migrate", "{memory: stop}"),
                       ("migrate.max_rounds", "3"), ("select.unit", "a-b@1.service")]:  # fmt: skip
        assert check(at(key, value)[0]).problems == []


def test_hosts_are_looked_at_before_they_are_known(tmp_path: Path) -> None:
    """A schedule's file is checked where nobody says which hosts there are."""
    (tmp_path / "book.yaml").write_text(HEAD.replace("spare", "-oProxyCommand=id"))
    (found,) = read_playbook(str(tmp_path / "book.yaml")).problems
    assert "begins with a dash" in found.message


@pytest.mark.parametrize("line", ["  -oX=1: {}", "  '': {}", "  a: {labels: {'': x}}",
                                  "  a: {labels: {k: 'a b'}}", "  a: {labels: {k: 1}}",
                                  "  a: {capacity: {workloads: -1}}"])  # fmt: skip
def test_what_an_inventory_refuses(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(f"inventory: 1\nhosts:\n{line}\n")
    (found,) = read_hosts(str(path)).problems
    assert found.line == 3 and found.hint and "[key]" not in found.path, found


def test_one_is_not_taken_for_the_other(tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "playbooks"
    (found,) = read_playbook(str(shipped / "hosts.yaml")).problems
    assert "this is an inventory, not a playbook" in found.message and "--hosts" in found.hint
    (found,) = read_hosts(str(shipped / "nightly-drain.yaml")).problems
    assert "this is a playbook, not an inventory" in found.message and found.line == 3


def test_the_command_refuses_rounds_as_a_playbook_does(capsys: pytest.CaptureFixture[str]) -> None:
    for line, said in (
        ("--memory stop --max-rounds 3", "--memory stop has no rounds: leave --max-rounds out"),
        ("--memory pre-copy --max-rounds 0", "--max-rounds 0 is only for --memory post-copy"),
    ):
        assert run(["src", "dst", "--pid", "7", *line.split()]) == 2
        assert said in capsys.readouterr().err


# --- much of it


def test_many_problems_are_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aliases = f"a: &a x\nb: [{', '.join(['*a'] * 2000)}]\n"
    unknown = HEAD + "".join(f"    k{one}: 1\n" for one in range(3000))
    unplaced = HEAD.replace("dst, spare", ", ".join(f"=h{one}" for one in range(100)))
    for text, first, more in ((aliases, 1, 1981), (unknown, 5, 2980), (unplaced, 4, 80)):
        path = tmp_path / "book.yaml"
        path.write_text(text)
        checked = read_playbook(str(path), known())
        assert len(checked.problems) == reading.MAX_PROBLEMS and checked.more == more
        assert checked.problems[0].line == first
        assert f"(and {more + 19} more" in checked.error().message
        assert run(["playbook", "check", str(path), "-F", SSH_CONFIG]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2 * reading.MAX_PROBLEMS + 1
        assert told[-1] == f"{path}: and {more} more; mend these first"
        assert run(["playbook", "check", str(path), "-F", SSH_CONFIG, "--json"]) == 2
        (answer,) = json.loads(capsys.readouterr().out)["files"]
        assert (len(answer["problems"]), answer["more"]) == (reading.MAX_PROBLEMS, more)


ENDLESS = {
    "list": "a: [" + "a," * 120_000 + "]", "maps": "[" + "{}," * 80_000 + "]",
    "keys": "".join(f"k{one}: 1\n" for one in range(20_000)), "open": "[" * 200_000,
    "braces": "{" * 200_000, "dashes": "- " * 100_000, "questions": "? " * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_whatever_is_as_large_as_may_be_is_read_soon(name: str) -> None:
    assert len(ENDLESS[name]) < MAX_BYTES
    begun = time.process_time()
    (found,) = read(ENDLESS[name]).problems
    assert time.process_time() - begun < 3  # about 0.7 s; it had been 6 s and more
    assert str(MAX_VALUES) in found.message or "nested too deeply" in found.message
    assert found.line and found.hint


# --- signals


@pytest.mark.parametrize("as_json", [True, False])
def test_a_signal_to_what_moves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", interrupted)
    assert run(["playbook", "check", "x.yaml", *(["--json"] if as_json else [])]) == 3
    told = capsys.readouterr()
    said = json.loads(told.out)["error"]["message"] if as_json else told.err
    assert "`migrate playbook check` was interrupted" in said and "rolled" not in told.out + said


def test_the_verb_of_a_command_line() -> None:
    lines = {"playbook check x": "playbook check", "-F f --json drain a": "drain", "a b": "move",
             "schedule serve x": "schedule serve", "check a b": "check", "playbook": "playbook",
             "--json playbook check x": "playbook check"}  # fmt: skip
    assert {line: verb_of(migrate, line.split()) for line in lines} == lines


def test_a_wrong_rule_does_not_hide_the_inventory(tmp_path: Path) -> None:
    """Its hosts and labels are known all the same: only what is wrong is told."""
    (tmp_path / "hosts.yaml").write_text("inventory: 1\nhosts:\n  src: {labels: {zone: b}}\n")
    path = tmp_path / "one.yaml"
    text = ONE.replace("playbook: 1\n", "playbook: 1\nhosts: hosts.yaml\n", 1)
    text = text.replace("to: [dst, spare]", "to: [zone=b]")
    assert "zone=b" in text
    path.write_text(text + 'schedule: {cron: "0 3 * * *", time_zone: Europe/Berlinn}\n')
    loaded = loading.load(str(path), None, SSH_CONFIG)
    ((problem,),) = [one.problems for one in loaded.wrong]
    assert "Berlinn" in problem.message
