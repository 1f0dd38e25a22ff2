"""`migrate doctor` with an agent that follows a script: what it says, and with which status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.leftovers import MayNotLook
from agent.leftovers.facts import CLEAR, HAND, RECOVER
from orchestrator import recovering
from orchestrator.__main__ import run
from orchestrator.errors import HostUnreachable
from orchestrator.records import Records
from orchestrator.recovery import Named
from tests.wire.scripted_agent import Answer, Json, ScriptedAgent

ID = "20261124-120000-abcdef"


def finding(kind: str, verdict: str, name: str = "it", **over: Any) -> Json:
    return {
        "kind": kind, "name": name, "migration": ID, "detail": f"the detail of {name}",
        "verdict": verdict, "clearing": f"what ends {name}",
        "command": f"end {name}" if verdict == HAND else "", **over,
    }  # fmt: skip


def look(*findings: Json, **over: Any) -> Json:
    return {"findings": list(findings), "under_way": [], "notes": [], **over}


def fixed(*cleared: Json, left: Json | None = None, errors: tuple[str, ...] = ()) -> Json:
    return {"cleared": list(cleared), "errors": list(errors), "left": left or look()}


TABLE = finding("table", CLEAR, "inet streamferry_x")
DOUBT = finding("journal", RECOVER, "/journal/x")
CRIU = finding("criu-lock", HAND, "table inet CRIU-1", migration="")


class Host:
    """One host, and the command that is run against it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.answers: dict[str, Answer] = {}
        self.calls: list[str] = []
        self.closed = False
        self._capsys = capsys
        monkeypatch.setattr(recovering, "open_agent", self._open)

    async def _open(self, target: Any, config: list[str], said: Any) -> Any:
        if not self.answers:
            raise HostUnreachable(host=str(target), detail="no route to host")
        self.agent = ScriptedAgent(str(target), self.answers)
        return self.agent.channel

    def doctor(self, *options: str, look: Any = None, fix: Any = None) -> tuple[int, str]:
        if look is not None:
            self.answers["doctor.look"] = look
        if fix is not None:
            self.answers["doctor.fix"] = fix
        status = run(["doctor", "src", *options])
        if self.answers:
            self.calls, self.closed = self.agent.calls, self.agent.closed
        told = self._capsys.readouterr()
        return status, str(told.out + told.err)

    def json(self, *options: str, **answers: Any) -> tuple[int, Json]:
        status, told = self.doctor("--json", *options, **answers)
        assert told.count("\n") == 1
        return status, dict(json.loads(told))


@pytest.fixture
def host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Host]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield Host(monkeypatch, capsys)


def test_a_clean_host(host: Host) -> None:
    assert host.doctor(look=look()) == (0, "src: nothing is left over\n")
    assert host.calls == ["doctor.look"] and host.closed


@pytest.mark.parametrize(
    ("findings", "status"),
    [([TABLE], 1), ([CRIU], 1), ([DOUBT], 4), ([TABLE, CRIU, DOUBT], 4)],
)
def test_the_exit_status(host: Host, findings: list[Json], status: int) -> None:
    assert host.doctor(look=look(*findings))[0] == status
    assert host.json(look=look(*findings))[0] == status


def test_what_is_said_of_each(host: Host) -> None:
    notes = {"notes": ["a CRIU is at work, PID 9: criu dump"]}
    _, told = host.doctor(look=look(TABLE, DOUBT, CRIU, **notes))
    assert told.splitlines() == [
        "clear      table inet streamferry_x: the detail of inet streamferry_x",
        "           --fix: what ends inet streamferry_x",
        "recover    journal /journal/x: the detail of /journal/x",
        "           `migrate recover src`: what ends /journal/x",
        "hand       criu-lock table inet CRIU-1: the detail of table inet CRIU-1",
        "           `end table inet CRIU-1`: what ends table inet CRIU-1",
        "note       a CRIU is at work, PID 9: criu dump",
        "src: 3 leftovers, 1 to be cleared with --fix, 1 to be ended by `migrate recover`, "
        "1 for you to decide",
    ]


def test_a_migration_that_was_begun_here_is_recovered_by_its_id(host: Host) -> None:
    Records().begin(Named(ID, "src", "dst", 5000), None)
    assert f"`migrate recover {ID}`" in host.doctor(look=look(DOUBT))[1]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_migration_under_way(host: Host, stopped: bool) -> None:
    way = {"id": ID, "role": "source", "state": "frozen", "pid": 5000}
    way = {**way, "agent": 900, "stopped": stopped}
    status, told = host.doctor(look=look(under_way=[way]))
    assert status == 0
    assert told.startswith(f"under way  migration {ID}, source of PID 5000: frozen, by the agent ")
    assert f"PID 900{', which is stopped: `kill -CONT 900`' * stopped}; not touched\n" in told


def test_fix(host: Host) -> None:
    status, told = host.doctor("--fix", fix=fixed(TABLE))
    assert (status, host.calls) == (0, ["doctor.fix"])
    assert told.splitlines() == [
        "cleared    table inet streamferry_x: what ends inet streamferry_x",
        "src: nothing is left over",
    ]
    failed = fixed(left=look(TABLE), errors=("it was not cleared: no room",))
    status, told = host.doctor("--fix", fix=failed)
    assert status == 1 and "failed     it was not cleared: no room" in told
    assert host.doctor("--fix", fix=fixed(TABLE, left=look(DOUBT)))[0] == 4


def test_json(host: Host) -> None:
    way = {"id": ID, "role": "source", "state": "", "pid": 0, "agent": 0, "stopped": False}
    _, told = host.json(look=look(TABLE, DOUBT, CRIU, under_way=[way], notes=["a"]))
    commands = ["migrate doctor src --fix", "migrate recover src", "end table inet CRIU-1"]
    assert told == {
        "host": "src",
        "findings": [
            {**one, "command": command}
            for one, command in zip((TABLE, DOUBT, CRIU), commands, strict=True)
        ],
        "cleared": [],
        "errors": [],
        "under_way": [way],
        "notes": ["a"],
        "error": None,
    }
    _, told = host.json("--fix", fix=fixed(TABLE, errors=("b",)))
    assert (told["cleared"], told["errors"], told["findings"]) == ([TABLE], ["b"], [])


def test_a_host_that_cannot_be_reached_or_refuses(host: Host) -> None:
    status, told = host.doctor()
    assert status == 3 and "cannot be reached" in told
    status, answer = host.json()
    assert status == 3 and answer["error"]["code"] == "unreachable" and answer["findings"] == []
    status, answer = host.json(look=MayNotLook(uid=1000, names="CAP_KILL"))
    assert status == 3 and answer["error"]["code"] == "may-not-look"


@pytest.mark.parametrize(
    "answer",
    [
        {}, look({"kind": "table"}), look({**TABLE, "more": 1}), look({**TABLE, "name": 5}),
        look(under_way=[{"id": ID}]), look(notes=[5]),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape(host: Host, answer: Json) -> None:
    status, told = host.json(look=answer)
    assert status == 3 and told["error"]["code"] == "protocol"


def test_what_a_host_sends_does_not_drive_the_terminal(host: Host) -> None:
    bad = finding("process", HAND, "PID 5 (\x1b[2J)")
    _, told = host.doctor("--fix", fix=fixed(bad, errors=("\x1b[2J",), left=look(bad)))
    assert "\x1b" not in told


def test_no_host(host: Host) -> None:
    assert host.doctor("another")[0] == 2
    assert run(["doctor"]) == 2
