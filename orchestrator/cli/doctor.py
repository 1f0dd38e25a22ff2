"""`migrate doctor HOST`: what interrupted migrations have left there, and what ends it."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.cli.options import ask, failed, print_json


def _hosts(context: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
    from orchestrator.records import Records

    names = {name for one in Records().all() for name in (one["source"], one["destination"])}
    return [CompletionItem(name) for name in sorted(names) if name.startswith(start)]


@click.command(name="doctor")
@click.argument("host", metavar="HOST", shell_complete=_hosts)
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("--fix", is_flag=True, help="Clear what is safe, and say what was cleared.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def doctor(host: str, ssh_config: str | None, fix: bool, as_json: bool) -> int:
    """Find what interrupted migrations have left on HOST, ours or CRIU's.

    Journals, stopped processes, sockets in repair mode, network locks, images, service addresses,
    agents, guardians, CRIUs, frozen cgroups. Nothing of a migration under way is touched, and a
    process only where its journal allows that.

    Exit status: 0 nothing is left, 1 something is, 2 usage (a HOST that is none, too), 3 HOST could
    not be reached or refused, 4 something needs `migrate recover`.

    With --json: {"host", "findings": [{"kind", "name", "migration": id or "", "detail", "verdict":
    "clear" (--fix does it) | "recover" | "hand", "clearing": what it does, or why it is not safe,
    "command"}], "cleared": [finding], "errors": [text], "under_way": [{"id", "role", "state",
    "pid", "agent": pid or 0, "stopped": bool: the agent is}], "notes": [text], "error"}.
    "kind": "journal" | "process" | "sockets" | "table" | "images" | "address" |
    "agent" | "guardian" | "criu" | "criu-lock" | "cgroup". With --fix "findings" has what is left.
    """
    from agent.errors import AgentError
    from orchestrator.doctor import diagnose

    try:
        found = ask(diagnose(host, ssh_config, fix), "doctor")
    except AgentError as error:
        names = ("findings", "cleared", "errors", "under_way", "notes")
        return failed(error, as_json, host=host, **{name: [] for name in names})
    if as_json:
        print_json(found.to_json())
    else:
        _say(found)
    return found.exit_status


def _agent(one: Any) -> str:
    if not one["agent"]:
        return ""
    pid = one["agent"]
    stopped = f", which is stopped: `kill -CONT {pid}`" if one["stopped"] else ""
    return f", by the agent PID {pid}{stopped}"


def _say(found: Any) -> None:
    """One line a finding, and one on what ends it."""
    from agent.leftovers.facts import CLEAR
    from orchestrator.report import plain, say

    for one in found.look["under_way"]:
        say(
            plain(
                f"under way  migration {one['id']}, {one['role']} of PID {one['pid']}: "
                f"{one['state'] or 'beginning'}{_agent(one)}; not touched"
            )
        )
    for one in found.cleared:
        say(plain(f"cleared    {one['kind']} {one['name']}: {one['clearing']}"))
    for text in found.errors:
        say(plain(f"failed     {text}"))
    for one in found.findings:
        say(plain(f"{one['verdict']:10} {one['kind']} {one['name']}: {one['detail']}"))
        words = "--fix" if one["verdict"] == CLEAR else f"`{found.command(one)}`"
        say(plain(f"{'':10} {words}: {one['clearing']}"))
    for text in found.look["notes"]:
        say(plain(f"note       {text}"))
    say(plain(found.summary))
