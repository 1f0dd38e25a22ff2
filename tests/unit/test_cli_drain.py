"""`migrate drain` and `migrate cordon` at the command line: what is asked, and what is printed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import run
from orchestrator.draining import conductor
from orchestrator.draining.outcome import READY
from tests.support.drains import World, mover

ROOT = Path(__file__).resolve().parents[2]
SSH = ["-F", str(ROOT / "lab/ssh_config")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    tmp_path.chmod(0o700)
    world = World()
    whole = conductor.Conductor
    made = functools.partial(whole, reach=lambda _: world, make=mover(world))
    monkeypatch.setattr(conductor, "Conductor", made)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return world


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    status = run(["drain", *arguments, *SSH, "--json"])
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    return status, json.loads(told.out)


Capture = pytest.CaptureFixture[str]


def test_json(world: World, capsys: Capture) -> None:
    world.start(4101)
    status, answer = asked(capsys, "src", "--to", "dst, spare", "--max-parallel", "2")
    (drain,) = answer["drains"]
    assert (status, answer["error"], drain["outcome"]) == (0, None, "drained")
    assert drain["workloads"][0]["state"] == "moved" and world.where(4101) != ["src"]
    status, answer = asked(capsys, "src", "--to", "dst,spare")
    assert (status, answer["drains"][0]["outcome"]) == (0, "nothing-to-do")
    status, answer = asked(capsys, "--resume", drain["id"])
    assert (status, answer["drains"][0]["workloads"]) == (0, drain["workloads"])


def test_for_a_person(world: World, capsys: Capture) -> None:
    world.start(4101)
    assert run(["drain", "src", "--to", "dst", "--reason", "fans", *SSH]) == 0
    text = capsys.readouterr().out
    assert "Draining src" in text and "program4101@4101 -> dst  moving" in text
    assert "src is empty of what was meant: 1 of 1 moved, the longest blackout 40.0 ms" in text
    assert "It is cordoned: `migrate uncordon src`" in text
    world.start(4102)
    world.obstacles[4102] = "process 7 (sh)"
    assert run(["drain", "src", "--to", "dst", "-q", *SSH]) == 3
    told = capsys.readouterr()
    assert told.out == "" and "program4102@4102: " in told.err and "hint:" in told.err


def test_a_dry_run_and_selects(world: World, capsys: Capture) -> None:
    world.start(4101)
    world.start(4102, labels={"app": "web"}, listening=[("10.77.0.9", 80)], addresses=["10.77.0.9"])
    select = ["--select", "port=80", "--select", "label=app=web"]
    status, answer = asked(capsys, "src", "--to", "dst", "--dry-run", *select)
    (drain,) = answer["drains"]
    assert (status, drain["outcome"]) == (0, READY) and world.cordons == {}
    assert [one["key"] for one in drain["workloads"]] == ["port-80"]


def test_a_playbook_and_its_drains(world: World, capsys: Capture) -> None:
    book = str(ROOT / "playbooks/rolling-reboot.yaml")
    status, answer = asked(capsys, "--playbook", book, "--dry-run")
    assert status == 0
    assert [one["outcome"] for one in answer["drains"]] == ["nothing-to-do"] * 2
    status, answer = asked(capsys, "dst", "--playbook", book, "--dry-run")
    assert [one["node"] for one in answer["drains"]] == ["dst"]


def test_a_playbook_that_is_wrong_touches_nothing(
    world: World, capsys: Capture, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "playbook: 1\ndrains:\n  - node: src\n    to: [dst]\n    cordn: true\n    x: 1\n"
    )
    status, answer = asked(capsys, "--playbook", str(bad))
    assert status == 2 and answer["error"]["code"] == "playbook-invalid" and not answer["drains"]
    assert [one["line"] for one in answer["problems"]] == [5, 6]
    assert run(["drain", "--playbook", str(bad), *SSH]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"{bad}:5:5: drains[0].cordn" in told.err and "`x`" in told.err
    assert world.timeline == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "NODE and --to"),
        ("src", "NODE and --to"),
        ("--to dst", "NODE and --to"),
        ("src --to src", "the node itself"),
        ("src --to spar", "Did you mean `spare`?"),
        ("src --to ,", "names no host"),
        ("src --to zone=x", "label `zone=x`"),
        ("src --to dst --max-parallel 0", "--max-parallel"),
        ("src --to dst --select port", "--select port: no value is given. Write port=VALUE"),
        ("src --to dst --select port=", "no value is given"),
        ("src --to dst --select port=99999", "port=99999: 99999 is too large: it is at most 65535"),
        ("src --to dst --select =80", "It is one of pid_file, command, port"),
        ("src --to dst --select prot=80", "Did you mean `port`?"),
        ("src --to dst --select port=x", "--select"),
        ("src --to dst --select command=(", "regular expression"),
        ("src --to dst --select port=80 --select port=080", "selects what `port-80` does"),
        (
            "src --to=-oProxyCommand=x",
            "--to: '-oProxyCommand=x' is not a host name: it begins",
        ),
        ("--resume=", "--resume: give the ID"),
        ("src --to dst --resume 20261126-070000-abcdef", "--resume goes without NODE, --to"),
        ("other --playbook playbooks/migrate-one.yaml", "has no drain of other; it has src"),
        ("--to dst --playbook playbooks/migrate-one.yaml", "--to goes with a NODE"),
        ("src --playbook playbooks/migrate-one.yaml --select port=1", "selects itself"),
    ],
)
def test_usage_errors(
    world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("orchestrator.playbook.known.socket.getaddrinfo", lambda *_: [])
    assert run(["drain", *line.split(), *SSH]) == 2
    told = capsys.readouterr()
    assert told.out == "" and said in " ".join(told.err.split())
    status, answer = asked(capsys, *line.split())
    assert status == 2 and answer["error"]["code"] == "usage"
    assert world.timeline == []


def test_a_node_that_would_be_an_option(world: World, capsys: Capture) -> None:
    assert run(["drain", "--to", "dst", *SSH, "--", "-oProxyCommand=x"]) == 2
    assert "NODE: '-oProxyCommand=x' is not a host name: it begins" in capsys.readouterr().err
    assert world.timeline == []


def test_an_ssh_configuration_that_is_not_there(world: World, capsys: Capture) -> None:
    assert run(["drain", "src", "--to", "dst", "-F", "/nowhere"]) == 2
    assert "/nowhere: the ssh configuration cannot be read" in capsys.readouterr().err
    assert world.timeline == []


def test_a_drain_that_is_not_known(world: World, capsys: Capture) -> None:
    status, answer = asked(capsys, "--resume", "20261126-070000-abcdef")
    assert (status, answer["error"]["code"], answer["drains"]) == (3, "unknown-drain", [])
    assert run(["drain", "--resume", "nonsense", *SSH]) == 3
    assert "no drain nonsense was begun here" in capsys.readouterr().err


def test_cordon(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import cordoning
    from orchestrator.agent_client import AgentClient
    from tests.support.drains import _Client

    class Agent(AgentClient):
        def __init__(self, host: str) -> None:
            self.cordon = _Client(world, host).cordon  # type: ignore[assignment,method-assign]
            self.uncordon = _Client(world, host).uncordon  # type: ignore[method-assign]

    async def reach(self: Any, *hosts: str, config: str | None = None) -> list[Any]:
        return [Agent(host) for host in hosts]

    async def close(self: Any) -> None: ...

    monkeypatch.setattr(cordoning.Recoverer, "reach", reach)
    monkeypatch.setattr(cordoning.Recoverer, "close", close)
    assert run(["cordon", "dst", "spare", "--reason", "fans"]) == 0
    assert "dst is cordoned (fans)\nspare is cordoned (fans)" in capsys.readouterr().out
    assert run(["uncordon", "dst", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"hosts": [{"host": "dst", "was_cordoned": True}], "error": None}
    assert run(["uncordon", "dst"]) == 0 and set(world.cordons) == {"spare"}
    assert "dst was not cordoned" in capsys.readouterr().out
    assert run(["cordon", "dst", "--reason", "two\nlines"]) == 2
