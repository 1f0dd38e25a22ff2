"""`migrate chaos`: break things on purpose, to see that nothing is lost."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.options import SIGNALS, failed, print_json


@click.group(name="chaos")
def chaos() -> None:
    """Break things on purpose, to see that nothing is lost.

    Without a command this is shown, with exit status 2, as by `migrate` alone.
    """


@chaos.command(name="points")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def points(as_json: bool) -> int:
    """List the points at which `migrate SRC DST --fault POINT@ROLE=ACTION` can inject a fault.

    With --json: {"points": [{"name", "role", "when", "actions": [str]}], "actions": {str: str}}.
    """
    from agent.fault import ACTIONS, POINTS
    from orchestrator import report

    if as_json:
        rows = [
            {"name": one.name, "role": one.role, "when": one.when, "actions": list(one.actions)}
            for one in POINTS
        ]
        print_json({"points": rows, "actions": ACTIONS})
        return 0
    for one in POINTS:
        report.say(f"{f'{one.name}@{one.role}':26} {one.when:52} {' '.join(one.actions)}")
    report.say("")
    for action, meaning in ACTIONS.items():
        report.say(f"{action:26} {meaning}")
    return 0


def _writable(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """A file that can be written when all is over: before anything is begun."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"{str(value)!r} is in no directory.")
    return value


_FILE = click.Path(path_type=Path, dir_okay=False, writable=True)


@chaos.command(name="run")
@click.argument("file", metavar="FILE")
@click.option("--journal", type=_FILE, callback=_writable, metavar="FILE",
              help="Write what was done there, as the Chaos Toolkit does (JSON).")  # fmt: skip
@click.option("--report", "page", type=_FILE, callback=_writable, metavar="FILE",
              help="Write what a person reads there (Markdown).")  # fmt: skip
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def run(
    file: str,
    journal: Path | None,
    page: Path | None,
    ssh_config: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run an experiment of the Chaos Toolkit, as `chaos run FILE` does.

    What it has begun is undone in any case, after Ctrl-C, too.

    Exit status: 0 the steady state holds, 1 it does not, or a step could not be done, 2 usage (an
    experiment that cannot be run, too), 3 refused or interrupted, 4 something is left on a host.

    With --json: {"file", "title", "outcome": "held" | "deviated" | "failed" | "interrupted" |
    "refused", "seconds", "before": [{"probe", "value", "met"}], "after": [...], "left": [text],
    "error"}.
    """
    from agent.errors import AgentError
    from orchestrator import report
    from orchestrator.chaos import running, session
    from orchestrator.errors import told

    def say(text: str) -> None:
        report.say(report.plain(text))

    try:
        done = running.run(file, ssh_config, None if quiet or as_json else say)
    except AgentError as error:
        empty: dict[str, Any] = {"before": [], "after": [], "left": []}
        return failed(error, as_json, file=file, title="", outcome=running.REFUSED, seconds=0.0,
                      **empty)  # fmt: skip
    for number in SIGNALS:  # what came of it is still told
        signal.signal(number, signal.SIG_IGN)
    _write(journal, json.dumps(done.journal, indent=1, default=str))
    if page is not None:
        from orchestrator.chaos.report import markdown

        _write(page, markdown(done.journal, done.outcome, [one.message for one in done.errors]))
    if as_json:
        states = done.journal["steady_states"]
        print_json({
            "file": file, "title": done.title, "outcome": done.outcome,
            "seconds": round(float(done.journal.get("duration", 0.0)), 1),
            "before": _probes(states["before"]), "after": _probes(states["after"]),
            "left": [*session.uncleared],
            "error": told(done.errors[0]) if done.errors else None,
        })  # fmt: skip
    else:
        for one in done.errors:
            report.problem(one.message, one.hint)
        if not done.errors and not quiet:
            say(f"{done.title}: the steady state holds")
    return done.exit_status


def _probes(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [
        {"probe": one["activity"]["name"], "value": one["output"], "met": one["tolerance_met"]}
        for one in (state or {}).get("probes", [])
    ]


def _write(path: Path | None, text: str) -> None:
    from orchestrator import report

    if path is None:
        return
    try:
        path.write_text(text)
    except OSError as error:
        report.say(f"migrate: nothing in {path}: {error.strerror}", sys.stderr)


@chaos.command(name="list")
@click.argument("paths", metavar="[FILE|DIRECTORY]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--activities", is_flag=True, help="What experiments are made of, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def list_(paths: tuple[Path, ...], activities: bool, as_json: bool) -> int:
    """List experiments: those that come along, or those of the paths.

    Exit status: 0 all are listed, 2 usage (what is no experiment, too).

    With --json: {"experiments": [{"file", "title", "description", "tags"}], "error"}; with
    --activities {"activities": [{"kind", "name", "arguments", "about"}], "error"}.
    """
    from agent.errors import AgentError
    from orchestrator import report
    from orchestrator.chaos import catalogue

    if activities:
        made_of = catalogue.activities()
        if as_json:
            print_json({"activities": [one.to_json() for one in made_of], "error": None})
            return 0
        for activity in made_of:
            report.say(f"{activity.kind:6} {activity.name}({activity.arguments})")
            report.say(f"{'':6} {activity.about}")
        return 0
    found: list[Any] = []
    wrong: list[AgentError] = []
    for file in catalogue.files(paths or [catalogue.shipped()]):
        try:
            found.append(catalogue.experiment(file))
        except AgentError as error:  # the others are listed all the same
            wrong.append(error)
    rows = [one.to_json() for one in found]
    if not as_json:
        for one in found:
            report.say(report.plain(f"{one.file:48} {one.title}"))
    if wrong:
        for one in wrong[1:] if not as_json else ():
            report.problem(one.message, one.hint)
        return failed(wrong[0], as_json, experiments=rows)
    if as_json:
        print_json({"experiments": rows, "error": None})
        return 0
    if not found:
        report.say("There is no experiment.")
    return 0
