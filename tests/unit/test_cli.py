"""The command line: what is understood, what is a usage error, and how quickly it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import __version__
from agent.fault import POINTS, ROLES
from orchestrator import cli
from orchestrator.__main__ import run
from orchestrator.cli.options import make_request

ROOT = Path(__file__).resolve().parents[2]


Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Says:
    """Run the command where nothing was begun: its exit status, and what it prints."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def command(*arguments: str) -> tuple[int, str, str]:
        status = run(list(arguments))
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


class Asked(Exception):
    """The command got as far as asking for a run."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The verb and the options of each run that was asked for; none is started."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def stop(given: dict[str, Any], verb: str) -> Any:
        make_request(given)
        seen.append((verb, given))
        raise Asked

    for name in ("orchestrator.cli.move", "orchestrator.cli.check"):  # there is a command
        monkeypatch.setattr(sys.modules[name], "run_driver", stop)  # of the same name, too
    yield seen


def ask(asked: list[tuple[str, dict[str, Any]]], *arguments: str) -> tuple[str, dict[str, Any]]:
    with pytest.raises(Asked):
        run(list(arguments))
    (found,) = asked
    asked.clear()
    return found


Seen = list[tuple[str, dict[str, Any]]]


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("src dst --pid 5", "migrate"),
        ("--pid 5 src dst", "migrate"),
        ("src --pid 5 dst", "migrate"),
        ("--pid=5 src dst", "migrate"),
        ("move src dst --pid 5", "migrate"),
        ("--pid 5 move src dst", "migrate"),
        ("check src dst --pid 5", "check"),
        ("--pid 5 check src dst", "check"),
        ("src dst --pid 5 --dry-run", "check"),
        ("--dry-run --pid 5 src dst", "check"),
    ],
)
def test_options_may_stand_anywhere(asked: Seen, line: str, verb: str) -> None:
    found, given = ask(asked, *line.split())
    assert found == verb
    assert (given["source"], given["destination"], given["pid"]) == ("src", "dst", 5)


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        ("move check dst --pid 5", "check", "dst"),
        ("src check --pid 5", "src", "check"),
        ("--pid 5 -- check dst", "check", "dst"),
        ("-F check src dst --pid 5", "src", "dst"),
        ("-Fcheck src dst --pid 5", "src", "dst"),
        ("--address check src dst --pid 5", None, None),
    ],
)
def test_a_host_that_is_named_as_a_verb(
    asked: Seen, line: str, source: str | None, destination: str | None
) -> None:
    if source is None:  # it is the option's value, and no address
        assert run(line.split()) == 2
        return
    verb, given = ask(asked, *line.split())
    assert verb == "migrate"
    assert (given["source"], given["destination"]) == (source, destination)


def test_all_options(asked: Seen) -> None:
    line = (
        "-F lab/ssh_config --json -v -q --max-blackout 2.5 --address 10.0.0.1 --address fd77::1 "
        "--bandwidth 1.5m --images-dir /images "
        "--fault ship@source=corrupt --fault lock@destination=delay=0.5 "
        "--test-no-replay --test-ignore-boundary a@src:22 dst --pid 7"
    )
    _, given = ask(asked, *line.split())
    request = make_request(given)
    assert (request.source, request.destination, request.pid) == ("a@src:22", "dst", 7)
    assert request.ssh_config == "lab/ssh_config"
    options = request.options
    assert options.max_blackout == 2.5 and options.images_dir == "/images"
    assert options.bandwidth == 1_500_000
    assert options.address == ("10.0.0.1", "fd77::1")
    assert not options.replay and not options.boundary
    assert options.faults == ("ship@source=corrupt", "lock@destination=delay=0.5")
    assert given["as_json"] and given["verbose"] and given["quiet"]


def test_what_is_meant_without_options(asked: Seen) -> None:
    _, given = ask(asked, "src", "dst", "--pid", "7")
    request = make_request(given)
    assert request.ssh_config is None
    options = request.options
    assert (options.max_blackout, options.images_dir) == (10.0, "/run/streamferry")
    assert options.bandwidth == 0
    assert options.replay and options.boundary and not options.faults and not options.address


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("src dst", "--pid"),
        ("src --pid 5", "DST"),
        ("--pid 5", "SRC"),
        ("src dst more --pid 5", "more"),
        ("src dst --pid five", "five"),
        ("src dst --pid 0", "0"),
        ("src dst --pid -1", "-1"),
        ("src dst --pid 4194305", "4194305"),
        ("src dst --pid", "--pid"),
        ("src dst --pid 5 --max-blackout 0", "0"),
        ("src dst --pid 5 --max-blackout -3", "-3"),
        ("src dst --pid 5 --max-blackout nan", "nan"),
        ("src dst --pid 5 --max-blackout 3601", "3601"),
        *[
            (f"src dst --pid 5 --bandwidth {rate}", "bytes a second between 100K and 1000G")
            for rate in (
                "0",
                "-1M",
                "99999",
                "99K",
                "1001G",
                "fast",
                "1T",
                "1MiB",
                "M",
                "1.M",
                "nan",
                "1e9",
                "9" * 40,
                "٣M",
            )
        ],
        ("src dst --pid 5 --address nowhere", "nowhere"),
        ("src dst --pid 5 --address 10.0.0.1/24", "10.0.0.1/24"),
        ("src dst --pid 5 --images-dir relative", "relative"),
        ("src dst --pid 5 --images-dir /", "/"),
        ("src dst --pid 5 --images-dir /run/../etc", ".."),
        ("src dst --pid 5 --fault nothing", "nothing"),
        ("src dst --pid 5 --fault lock@source", "lock@source"),
        ("src dst --pid 5 --fault lock@nobody=kill", "nobody"),
        ("src dst --pid 5 --fault lock=kill", "lock=kill"),
        ("src dst --pid 5 --fault tea@source=kill", "tea"),
        ("src dst --pid 5 --fault lock@source=tea", "tea"),
        ("src dst --pid 5 --fault lock@source=delay=long", "long"),
        ("src dst --pid 5 --unknown", "--unknown"),
        ("check src dst --pid 5 --dry-run", "--dry-run"),
    ],
)
def test_usage_errors(
    asked: Seen, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err.splitlines()[-1], told.err
    assert asked == []

    assert run([*line.split(), "--json"]) == 2
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert told.out.count("\n") == 1 and told.err == ""
    assert answer["outcome"] == "refused"
    assert answer["error"]["code"] == "usage" and answer["error"]["hint"]
    if line != "src dst --pid":  # there --json is taken for the number
        assert said in answer["error"]["message"]


NO_HOST = "a:b:c"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        *[
            (f"{verb} {NO_HOST}", NO_HOST)
            for verb in ("recover", "doctor", "list", "cordon", "uncordon")
        ],
        *[(f"{verb}{NO_HOST} dst --pid 5", NO_HOST) for verb in ("", "move ", "check ")],
        ("doctor", "HOST"),
        ("cordon", "HOST"),
        ("uncordon --bogus", "--bogus"),
        ("playbook check", "FILE"),
        ("playbook bogus", "bogus"),
        ("show", "ID"),
        ("show one two", "two"),
        ("recover one two", "two"),
        *[(f"{verb} --bogus", "--bogus") for verb in ("show", "list", "recover", "doctor")],
        ("chaos --bogus", "--bogus"),
        ("chaos points --bogus", "--bogus"),
        ("chaos bogus", "bogus"),
    ],
)
def test_usage_errors_are_the_same_of_every_verb(says: Says, line: str, said: str) -> None:
    moves = "--pid" in line
    status, out, err = says(*line.split(), *(["-q"] if moves else []))
    assert (status, out) == (2, "") and said in err

    status, out, err = says(*line.split(), "--json")
    assert status == 2 and out.count("\n") == 1 and err == ""
    answer = json.loads(out)
    assert answer["error"]["code"] == "usage" and answer["error"]["hint"]
    assert said in answer["error"]["message"] and ("outcome" in answer) == moves


@pytest.mark.parametrize(
    "verb", ["move", "check", "recover", "doctor", "list", "show", "drain", "cordon", "uncordon"]
)
def test_the_help_of_each_verb_has_its_exit_status(says: Says, verb: str) -> None:
    status, out, _ = says(verb, "--help")
    assert status == 0 and "2 usage" in " ".join(out.partition("Exit status:")[2].split())


def test_what_was_not_begun_here(says: Says) -> None:
    for verb in ("show", "recover"):
        status, out, err = says(verb, "20261124-120000-abcdef")
        assert (status, out) == (3, "") and err.startswith("error: no migration 20261124-")
        status, out, err = says(verb, "20261124-120000-abcdef", "--json")
        assert (status, err) == (3, "")
        assert json.loads(out)["error"]["code"] == "unknown-migration"


@pytest.mark.parametrize("role", ROLES)
def test_every_fault_point_can_be_named(asked: Seen, role: str) -> None:
    names = [point for point in POINTS if point.role == role]
    faults = [f"--fault={one.name}@{role}={one.actions[0]}" for one in names]
    _, given = ask(asked, "src", "dst", "--pid", "5", *faults)
    assert len(given["faults"]) == len(names)


def test_help_names_everything_but_the_switches_for_tests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("SRC", "DST", "--pid", "-F", "--json", "--max-blackout", "--address",
                 "--bandwidth", "--images-dir", "--dry-run", "check", "move", "_MIGRATE_COMPLETE",
                 "Exit status"):  # fmt: skip
        assert word in text
    assert "--fault" not in text and "--test-" not in text


@pytest.mark.parametrize("line", ["check --help", "move --help", "src --help", "--json --help"])
def test_help_of_the_verbs(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(line.split()) == 0
    assert "--max-blackout" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(__version__)


@pytest.mark.parametrize("line", ["", "chaos"])
def test_nothing_at_all_shows_the_help(says: Says, line: str) -> None:
    status, out, err = says(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"Usage: migrate {line}") and "Commands:" in err and "Error" not in err


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("migrate --p", "--pid"),
        ("migrate src --p", "--pid"),
        ("migrate --json src dst --d", "--dry-run"),
        ("migrate check --im", "--images-dir"),
        ("migrate --json check --im", "--images-dir"),
        ("migrate --v", "--version"),
        ("migrate ch", "check"),
    ],
)
def test_completion(words: str, expected: str) -> None:
    position = str(len(words.split()) - 1)
    done = process(_MIGRATE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position)
    assert expected in done.stdout, (done.stdout, done.stderr)


def test_help_loads_nothing_heavy() -> None:
    """What costs most at the start, for --help and for completion alike."""
    code = (
        "import sys; from orchestrator.__main__ import run; run(['--help']);"
        "print([name for name in ('asyncssh', 'rich', 'pyroute2', 'google.protobuf', 'msgpack',"
        " 'pydantic', 'yaml')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_group_has_the_verbs() -> None:
    verbs = {"move", "check", "recover", "doctor", "list", "show", "chaos", "drain", "cordon",
             "uncordon", "playbook", "report", "schedule"}  # fmt: skip
    assert set(cli.migrate.commands) == verbs


def test_a_signal_in_the_middle_of_an_import() -> None:
    """What was imported by half could not be imported again, to say what was interrupted."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Sends:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'asyncio.base_events': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Sends())\n"
        "from orchestrator.__main__ import run\n"
        "sys.exit(run(['playbook', 'check', 'x.yaml']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "`migrate playbook check` was interrupted" in done.stderr, done.stderr
    assert done.returncode == 3 and "Traceback" not in done.stderr
