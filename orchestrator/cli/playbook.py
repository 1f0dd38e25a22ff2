"""`migrate playbook check FILE`: is a playbook right, before any host is touched."""

from __future__ import annotations

import sys
from typing import Any

import click

from orchestrator.cli.options import print_json


@click.group(name="playbook")
def playbook() -> None:
    """Playbooks: what is to be moved, where to, how and when, in YAML."""


@playbook.command(name="check")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--hosts", metavar="FILE", help="The inventory, in place of the playbook's own.")
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def check(files: tuple[str, ...], hosts: str | None, ssh_config: str | None, as_json: bool) -> int:
    """Check playbooks in full; no host is touched.

    Exit status: 0 all are right, 2 something is wrong.

    With --json: {"files": [{"file", "ok": bool, "drains": int, "problems": [{"file", "line",
    "column", "path", "message", "hint"}], "more": how many there are beside those}], "error"}.
    """
    from agent.errors import EXIT_USAGE
    from orchestrator import report
    from orchestrator.errors import told
    from orchestrator.playbook.loading import load

    rows: list[dict[str, Any]] = []
    error = None
    for file in files:
        loaded = load(file, hosts, ssh_config)
        error = error or loaded.error()
        drains = len(loaded.playbook.drains) if loaded.playbook is not None else 0
        rows.append({
            "file": file, "ok": not loaded.wrong, "drains": drains, "problems": problems(loaded),
            "more": sum(one.more for one in loaded.wrong),
        })  # fmt: skip
        if as_json:
            continue
        if loaded.wrong:
            say_problems(loaded)
        else:
            report.say(f"{file}: right, {drains} {'drains' if drains != 1 else 'drain'}")
    if as_json:
        print_json({"files": rows, "error": told(error) if error else None})
    return EXIT_USAGE if error else 0


def problems(loaded: Any) -> list[dict[str, Any]]:
    """All that is wrong with a playbook and its inventory, as JSON has it."""
    return [
        {
            "file": checked.path, "line": one.line, "column": one.column, "path": one.path,
            "message": one.message, "hint": one.hint,
        }
        for checked in loaded.wrong
        for one in checked.problems
    ]  # fmt: skip


def say_problems(loaded: Any) -> None:
    """The same for a person."""
    from orchestrator import report

    for checked in loaded.wrong:
        for one in checked.problems:
            report.problem(f"{checked.place(one)}: {one.message}", one.hint)
        if checked.more:
            report.say(f"{checked.path}: and {checked.more} more; mend these first", sys.stderr)
