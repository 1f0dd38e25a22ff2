"""`migrate list` and `migrate show ID`: what was begun here, and what came of it."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.cli.options import ask, damage, failed, print_json, say_damaged

UNFINISHED = "unfinished"


@click.command(name="list")
@click.argument("hosts", metavar="[HOST]...", nargs=-1)
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def list_(hosts: tuple[str, ...], ssh_config: str | None, as_json: bool) -> int:
    """List migrations: those begun here, or those that HOSTs' journals have as not over.

    Exit status: 0 all is listed, 2 usage (a HOST that is none, too), 3 a HOST could not be reached
    or refused, or a record or a journal cannot be read (the others are listed).

    With --json: {"migrations": [{"id", "source", "destination", "pid", "begun", "outcome",
    "blackout_ms"}], "damaged": [{"path", "code", "message", "hint"}], "error"}; of HOSTs the
    migrations are {"host", "id", "role", "state", "at", "pid", ...}, with "state" "" and "pid" 0
    where an agent has written nothing yet; what is damaged has a "host", too.
    """
    if hosts:
        return _of_hosts(hosts, ssh_config, as_json)
    from orchestrator import report
    from orchestrator.records import Records

    records, damaged = Records().look()
    rows = [_row(record) for record in records]
    status = max((one.exit_status for one in damaged), default=0)
    if as_json:
        print_json({"migrations": rows, **damage(damaged)})
        return status
    for row in rows:
        blackout = f"{row['blackout_ms']:9.1f} ms" if row["blackout_ms"] else f"{'-':>12}"
        report.say(
            report.plain(
                f"{row['id']}  {row['outcome']:12} {blackout}  "
                f"PID {row['pid']} {row['source']} -> {row['destination']}"
            )
        )
    say_damaged(damaged)
    if not rows and not damaged:
        report.say("No migration was begun here.")
    return status


def _row(record: Any) -> dict[str, Any]:
    result = record["result"] or {}
    return {
        **{name: record[name] for name in ("id", "source", "destination", "pid", "begun")},
        "outcome": result.get("outcome", UNFINISHED),
        "blackout_ms": result.get("blackout_ms", 0.0),
    }


def _of_hosts(hosts: tuple[str, ...], ssh_config: str | None, as_json: bool) -> int:
    from agent.errors import AgentError
    from orchestrator import report
    from orchestrator.recovering import journals

    try:
        rows, damaged = ask(journals(hosts, ssh_config), "list")
    except AgentError as error:
        return failed(error, as_json, migrations=[], damaged=[])
    status = max((one.exit_status for one in damaged), default=0)
    if as_json:
        print_json({"migrations": rows, **damage(damaged)})
        return status
    for row in rows:
        what = (
            f"{row['state']}  PID {row['pid']} {row['source']} -> {row['destination']}"
            if row["state"]
            else "its agent has written nothing yet, or died before it did"
        )
        report.say(report.plain(f"{row['id']}  {row['host']} is its {row['role']}: {what}"))
    say_damaged(damaged)
    if not rows and not damaged:
        report.say("No migration is under way or interrupted there.")
    return status


def _ids(context: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
    from orchestrator.records import Records

    return [CompletionItem(one["id"]) for one in Records().all() if one["id"].startswith(start)]


@click.command(name="show")
@click.argument("migration", metavar="ID", shell_complete=_ids)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def show(migration: str, as_json: bool) -> int:
    """Show one migration that was begun here, with its streams.

    Exit status: 0 it is shown, 2 usage, 3 it was not begun here, or its record cannot be read.

    With --json: {"id", "source", "destination", "pid", "ssh_config", "begun", "result": what the
    migration printed, or null, "error"}, or {"error"} alone.
    """
    from orchestrator import report
    from orchestrator.records import RecordDamaged, Records
    from orchestrator.recovering import UnknownMigration

    try:
        record = Records().get(migration)
        if record is None:
            raise UnknownMigration(id=migration)
    except (RecordDamaged, UnknownMigration) as error:
        return failed(error, as_json)
    if as_json:
        kept = {name: one for name, one in record.items() if name != "account"}
        print_json({**kept, "error": None})  # `migrate report` has the account
        return 0
    report.say(
        report.plain(
            f"{record['id']}: PID {record['pid']} from {record['source']} to "
            f"{record['destination']}, begun {record['begun']}"
        )
    )
    result = record["result"]
    if result is None:
        report.say(f"It never came to its end here: `migrate recover {migration}`")
        return 0
    if "streams" in result:
        report.summary(result, True)
    if result["recovered"]:
        report.say(f"Ended by `migrate recover`: {result['outcome']}")
    if why := result["error"]:
        report.problem(why["message"], why["hint"])
    return 0
