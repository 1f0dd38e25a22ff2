"""`migrate cordon HOST...` and `migrate uncordon HOST...`: whether anything may migrate onto it."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.options import ask, failed, print_json


def _options(command: Any) -> Any:
    for option in reversed([
        click.argument("hosts", metavar="HOST...", nargs=-1, required=True),
        click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration, as ssh -F."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object alone."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command(name="cordon")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever meets the cordon.")
@_options
def cordon(hosts: tuple[str, ...], ssh_config: str | None, as_json: bool, reason: str) -> int:
    """Let nothing migrate onto HOSTs until `migrate uncordon`; what runs there goes on.

    Exit status: 0 they are cordoned, 2 usage (a HOST that is none, too), 3 one could not be
    reached, or refused.

    With --json: {"hosts": [{"host", "since": seconds since the epoch, "reason"}], "error"}.
    """
    from agent.cordon import LONGEST
    from agent.errors import AgentError
    from orchestrator import report
    from orchestrator.cordoning import cordon as put

    if len(reason) > LONGEST or not reason.isprintable():
        raise click.UsageError(f"--reason is one line of at most {LONGEST} characters")
    try:
        rows = ask(put(hosts, ssh_config, reason), "cordon")
    except AgentError as error:
        return failed(error, as_json, hosts=[])
    if as_json:
        print_json({"hosts": rows, "error": None})
        return 0
    for row in rows:
        why = f" ({row['reason']})" if row["reason"] else ""
        report.say(report.plain(f"{row['host']} is cordoned{why}"))
    return 0


@click.command(name="uncordon")
@_options
def uncordon(hosts: tuple[str, ...], ssh_config: str | None, as_json: bool) -> int:
    """Let processes migrate onto HOSTs again.

    Exit status: 0 they are open, 2 usage (a HOST that is none, too), 3 one could not be reached, or
    refused.

    With --json: {"hosts": [{"host", "was_cordoned": bool}], "error"}.
    """
    from agent.errors import AgentError
    from orchestrator import report
    from orchestrator.cordoning import uncordon as lift

    try:
        rows = ask(lift(hosts, ssh_config), "uncordon")
    except AgentError as error:
        return failed(error, as_json, hosts=[])
    if as_json:
        print_json({"hosts": rows, "error": None})
        return 0
    for row in rows:
        said = "is open again" if row["was_cordoned"] else "was not cordoned"
        report.say(report.plain(f"{row['host']} {said}"))
    return 0
