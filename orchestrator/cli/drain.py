"""`migrate drain NODE --to HOST[,HOST...]`: empty a host, as `kubectl drain` does."""

from __future__ import annotations

import sys
from typing import Any

import click

from orchestrator.cli.observing import observed
from orchestrator.cli.options import OnSignals, failed, print_json, run_to_end
from orchestrator.cli.playbook import problems, say_problems


@click.command(name="drain")
@click.argument("node", metavar="[NODE]", required=False)
@click.option("--to", metavar="HOST[,HOST...]", help="Where the workloads go; or KEY=VALUE.")
@click.option("--playbook", metavar="FILE", help="What is moved and how; see docs/playbooks.md.")
@click.option(
    "--select",
    "selects",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only these: pid_file, command, port, address, unit or label. Repeatable.",
)
@click.option("--max-parallel", type=click.IntRange(1, 100), metavar="N", help="How many at once.")
@click.option("--reason", metavar="TEXT", help="Why, for whoever meets the cordon.")
@click.option("--resume", metavar="ID", help="Go on with a drain that was interrupted.")
@click.option("--dry-run", is_flag=True, help="Only see what would go where; nothing is touched.")
@click.option("--hosts", metavar="FILE", help="The inventory, in place of the playbook's own.")
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
@observed
def drain(as_json: bool, quiet: bool, metrics: Any, **given: Any) -> int:
    """Empty NODE: cordon it, and move its workloads to other hosts with their TCP connections.

    Without a playbook or --select, all that has a service address is moved. NODE stays cordoned
    (nothing migrates onto it) until `migrate uncordon NODE`. What cannot move is found before
    anything moves, and the others are moved. A playbook without NODE: all its drains, in order.

    Exit status: 0 all that was meant is moved (or there is nothing), 1 something is not, or it was
    interrupted, 2 usage (a playbook that is wrong, too), 3 refused: nothing was moved (of a
    dry run: something cannot be), 4 something is in doubt.

    With --json: {"drains": [{"id", "node", "outcome": "drained" | "nothing-to-do" | "ready" |
    "incomplete" | "refused" | "in-doubt" | "interrupted", "dry_run", "cordoned", "workloads":
    [{"key", "pid", "state", "destination", "migration", "blackout_ms", "stall_ms", "error",
    "times", ...}], "error"}], "problems": [...], "error"}.
    """
    from agent.errors import AgentError
    from orchestrator.draining.outcome import exit_status
    from orchestrator.draining.view import Lines, Silent, Table, summary

    if given["resume"] is not None:
        others = [name for name, one in given.items() if one and name not in _WITH_RESUME]
        if others:
            named = ", ".join(map(_named, sorted(others)))
            raise click.UsageError(f"--resume goes without {named}: all that is known already")
        if not given["resume"].strip():
            raise click.UsageError("--resume: give the ID of a drain, which it has said")
        asked: list[Any] = []
    else:
        asked, wrong = _asked(given)
        if wrong is not None:
            if not as_json:
                say_problems(wrong)
                return 2
            return failed(wrong.error(), True, drains=[], problems=problems(wrong))
    silent = as_json or quiet
    view = Silent() if silent else Table() if sys.stdout.isatty() else Lines()
    try:
        results, errors = run_to_end(lambda signals: _run(given, asked, view, metrics, signals))
    except AgentError as error:
        return failed(error, as_json, drains=[], problems=[])
    if as_json:
        first = next((one["error"] for one in results if one["error"]), None)
        print_json({"drains": results, "problems": [], "error": first})
    elif not quiet:
        for result in results:
            summary(result)
    else:
        _say_errors(results)
    return exit_status(results, errors)


def _named(parameter: str) -> str:
    """As it is written on the command line."""
    words = {"node": "NODE", "selects": "--select"}
    return words.get(parameter, f"--{parameter.replace('_', '-')}")


_WITH_RESUME = ("resume", "ssh_config")


def _say_errors(results: list[dict[str, Any]]) -> None:
    from orchestrator import report

    for one in filter(None, (result["error"] for result in results)):
        report.problem(one["message"], one["hint"])


async def _run(
    given: dict[str, Any], asked: list[Any], view: Any, metrics: Any, on_signals: OnSignals
) -> tuple[list[dict[str, Any]], list[Any]]:
    from orchestrator.draining.conductor import Conductor
    from orchestrator.draining.outcome import DRAINED, NOTHING, READY
    from orchestrator.playbook.model import STOP

    conductor = Conductor(given["ssh_config"], view, ended=metrics.migration)
    on_signals(conductor.interrupt)
    results = []
    try:
        if given["resume"] is not None:
            view.begin(given["resume"])
            results.append(await conductor.resume(given["resume"]))
            metrics.drain(results[-1])
        for one in asked:
            view.begin(one.drain.node)
            results.append(await conductor.drain(one, given["dry_run"]))
            metrics.drain(results[-1])
            view.end()
            good = results[-1]["outcome"] in (DRAINED, NOTHING, READY)
            if conductor.interrupted or (not good and one.drain.on_failure == STOP):
                break
    finally:
        view.end()
    return results, conductor.errors


def _asked(given: dict[str, Any]) -> tuple[list[Any], Any]:
    """The drains that are meant, and what is wrong with the playbook. Raises `UsageError`."""
    from orchestrator.draining.beginning import ask
    from orchestrator.playbook.loading import load

    node, path = given["node"], given["playbook"]
    if path is None and (node is None or given["to"] is None):
        raise click.UsageError("give NODE and --to HOST, or --playbook FILE")
    if path is not None and given["selects"]:
        raise click.UsageError("--select goes with no playbook, which selects itself")
    if path is not None and node is None and given["to"] is not None:
        raise click.UsageError("--to goes with a NODE")
    loaded = load(path, given["hosts"], given["ssh_config"])
    if loaded.wrong:
        return [], loaded
    book = loaded.playbook or _playbook(given)
    drains = [one for one in book.drains if node in (None, one.node)]
    if not drains:
        there = ", ".join(one.node for one in book.drains)
        raise click.UsageError(f"{path} has no drain of {node}; it has {there}")
    changes = _changes(given)
    drains = [one.model_copy(update=changes) for one in drains]
    if changes:
        _check(book.model_copy(update={"drains": drains}), loaded.known)
    return [ask(one, book.defaults, loaded.known) for one in drains], None


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """What the command line has in place of the playbook's."""
    changes: dict[str, Any] = {}
    if given["to"] is not None:
        changes["to"] = [one.strip() for one in given["to"].split(",") if one.strip()]
    if given["max_parallel"] is not None:
        changes["max_parallel"] = given["max_parallel"]
    if given["reason"] is not None:
        changes["reason"] = given["reason"]
    return changes


def _playbook(given: dict[str, Any]) -> Any:
    """That of the command line alone. Raises `UsageError`."""
    from pydantic import ValidationError

    from orchestrator.playbook.model import Playbook
    from orchestrator.playbook.wording import worded

    selects = list(dict.fromkeys(given["selects"]))
    drain: dict[str, Any] = {"node": given["node"], "to": ["-"]}
    if selects:
        drain["workloads"] = [_workload(one, at) for at, one in enumerate(selects)]
    try:
        return Playbook.model_validate({"playbook": 1, "drains": [drain]})
    except ValidationError as error:
        said = worded(error.errors(include_url=False)[0], Playbook)
        place = [one for one in said.place if isinstance(one, int)]  # of the drain, the workload
        about = f"--select {selects[place[1]]}" if len(place) > 1 else "NODE"
        raise click.UsageError(f"{about}: {said.message}. {said.hint}") from None


def _workload(text: str, at: int) -> dict[str, Any]:
    import re

    from orchestrator.playbook.model import Select
    from orchestrator.playbook.rules import meant

    key, _, value = text.partition("=")
    key = key.replace("-", "_")
    if key not in Select.model_fields:
        known = ", ".join(Select.model_fields)
        hint = meant(key, Select.model_fields) or f"It is one of {known}."
        raise click.UsageError(f"--select {text}: write KEY=VALUE. {hint}")
    if not value:
        said = Select.model_fields[key].description
        raise click.UsageError(f"--select {text}: no value is given. Write {key}=VALUE: {said}")
    number = key == "port" and value.isascii() and value.isdecimal() and len(value) < 10
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{key}-{value}").strip("-.")[:60]
    return {
        "name": f"{name}.{at}" if at else name,
        "select": {key: int(value) if number else value},
    }


def _option(path: str) -> str:
    """What of the command line stands at a place of its playbook; else the place."""
    import re

    if re.fullmatch(r"drains\[\d+\]\.to\[\d+\]", path):
        return "--to"
    if re.fullmatch(r"drains\[\d+\]\.node", path):
        return "NODE"
    selects = re.fullmatch(r"drains\[\d+\]\.workloads\[\d+\]\.select", path)
    return "--select" if selects else path


def _check(book: Any, known: Any) -> None:
    """What the command line has changed keeps to the same rules. Raises `UsageError`."""
    from agent.cordon import LONGEST
    from orchestrator.playbook.rules import problems as broken
    from orchestrator.playbook.yaml_source import Source

    for drain in book.drains:
        if not drain.to:
            raise click.UsageError("--to names no host: give HOST, or several with commas")
        if len(drain.reason) > LONGEST or not drain.reason.isprintable():
            raise click.UsageError(f"--reason is one line of at most {LONGEST} characters")
    for one in broken(book, Source(), known):
        raise click.UsageError(f"{_option(one.path)}: {one.message}. {one.hint}".strip())
