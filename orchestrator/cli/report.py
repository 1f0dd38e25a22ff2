"""`migrate report ID|last`: what one migration was like, for a person or a program."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.cli.options import failed, print_json

_LAST = "last"


def _ids(context: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
    from orchestrator.records import Records

    known = [_LAST, *reversed([one["id"] for one in Records().all()])]
    return [CompletionItem(one) for one in known if one.startswith(start)]


@click.command(name="report")
@click.argument("migration", metavar="ID|last", shell_complete=_ids)
@click.option(
    "--html", "page", type=click.Path(dir_okay=False), metavar="FILE",
    help="Write it to FILE as one HTML page that needs nothing else.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def report(migration: str, page: str | None, as_json: bool) -> int:
    """Report on one migration that was begun here, or the last: its timeline on both hosts, the
    blackout, what each connection had in its queues and when its peer was heard again, what the
    client would have felt, and why it failed where it did.

    Exit status: 0 it is reported, 2 usage, 3 it was not begun here, its record cannot be read, or
    FILE not be written.

    With --json: {"report": {"id", "outcome", "failure", "blackout_ms", "undone_ms", "stall",
    "queues", "streams": [{"local", "remote", "state", "sent", "unsent", "receive_queue", "wake_ms",
    "probes", "stall_ms"}], "timeline": [{"role", "phase", "start_ms", "ms"}], "rounds", "notes",
    ...}, "error"}, or {"report": null, "error"}.
    """
    from agent.errors import AgentError
    from orchestrator.report import say
    from orchestrator.reporting.model import report as made_of
    from orchestrator.reporting.terminal import lines

    if page == "":
        raise click.UsageError("--html: the name of the file is empty; give one, as page.html")
    try:
        made = made_of(_record(migration))
        if page is not None:
            _write(page, made)
    except AgentError as error:
        return failed(error, as_json, report=None)
    if as_json:
        print_json({"report": made, "error": None})
    elif page is not None:
        say(f"The report of {made['id']} is in {page}")
    else:
        for line in lines(made):
            say(line)
    return 0


def _record(migration: str) -> Any:
    from orchestrator.records import NothingBegun, Records
    from orchestrator.recovering import UnknownMigration

    records = Records()
    if migration == _LAST:
        if (last := records.last()) is None:
            raise NothingBegun()
        return last
    if (record := records.get(migration)) is None:
        raise UnknownMigration(id=migration)
    return record


def _write(path: str, made: dict[str, Any]) -> None:
    """Raises `PageUnwritten`."""
    import os
    from pathlib import Path

    from orchestrator import atomic
    from orchestrator.reporting.page import PageUnwritten, html

    data = html(made).encode()
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        file = atomic.behind(Path(path))
        if file is not None:
            atomic.replace(file, data, 0o666 & ~mask)
        else:
            with open(path, "wb") as device:
                device.write(data)
    except OSError as error:
        raise PageUnwritten(path=path, detail=error.strerror or str(error)) from None
