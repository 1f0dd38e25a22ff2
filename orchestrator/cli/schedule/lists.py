"""`migrate schedule list`, `next` and `history`: what is due, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.cli.options import failed, print_json
from orchestrator.cli.schedule.stored import JSON, STORE, named, opened, say, store_path


@click.command(name="list")
@STORE
@JSON
def list_(store: str | None, as_json: bool) -> int:
    """List the schedules that are or were served, each with its next run and its last.

    Exit status: 0, or 3 where the store cannot be read.

    With --json: {"server": PID or null, "schedules": [{"name", "path", "state": "served" | "wrong"
    | "gone", "why", "paused", "cron", "time_zone", "next", "begins", "last": run or null}],
    "error"}; a run is as in `migrate schedule history`.
    """
    import time

    from agent.errors import AgentError
    from orchestrator.scheduling.store import server_of
    from orchestrator.scheduling.view import listed, playbook_json, unserved

    path = store_path(store)
    server = server_of(path)
    try:
        with opened(path) as found:
            rows = []
            for row in found.playbooks() if found is not None else []:
                last = next(iter(found.runs(row.name, 1)), None)
                rows.append(playbook_json(row, found.salt, time.time(), last))
    except AgentError as error:
        return failed(error, as_json, server=server, schedules=[])
    unserved([one["last"] for one in rows if one["last"]], server is not None)
    if as_json:
        print_json({"server": server, "schedules": rows, "error": None})
    else:
        for line in listed(rows) if rows else ["Nothing was ever served here."]:
            say(line)
        if rows and server is None:
            say("Nobody serves them now.")
    return 0


@click.command(name="next")
@click.argument("names", metavar="[NAME|FILE]...", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N")
@STORE
@JSON
def next_(names: tuple[str, ...], limit: int, store: str | None, as_json: bool) -> int:
    """Show when the next runs are due, of schedules that are served or of playbooks.

    Exit status: 0, 2 a playbook is wrong or has no schedule, 3 no schedule has that name.

    With --json: {"next": [{"name", "due", "begins", "window_ends", "paused"}], "error"}.
    """
    import itertools
    import time

    from agent.errors import AgentError

    rows = []
    try:
        for one, since, paused in _times(names, store_path(store), time.time()):
            for due in itertools.islice(one.after(since), limit):
                closes = one.closes(due)
                rows.append({
                    "name": one.name, "due": one.shown(due), "begins": one.shown(one.begin(due)),
                    "window_ends": one.shown(closes) if closes is not None else None,
                    "paused": paused,
                })  # fmt: skip
    except AgentError as error:
        return failed(error, as_json, next=[])
    if as_json:
        print_json({"next": rows, "error": None})
        return 0
    for row in rows:
        window = f", until {row['window_ends']}" if row["window_ends"] else ""
        begins = f", begins {row['begins']}" if row["begins"] != row["due"] else ""
        skipped = ", skipped if it is still paused then" if row["paused"] else ""
        say(f"{row['name']}: {row['due']}{begins}{window}{skipped}")
    if not rows:
        say("Nothing is due.")
    return 0


@click.command(name="history")
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N"
)
@STORE
@JSON
def history(name: str | None, limit: int, store: str | None, as_json: bool) -> int:
    """Show the last runs, oldest first: when due, begun and ended, and what came of each.

    Exit status: 0, or 3 where there is no such schedule or the store cannot be read.

    With --json: {"runs": [{"playbook", "due", "asked": bool, "outcome": "waiting" | "running" |
    "interrupted" | "done" | "failed" | "skipped" | "missed", "why", "begun", "ended", "times":
    how often it was begun or gone on with, "window_ends", "drains": [{"id", "node", "outcome"}]}],
    "error"}.
    """
    from agent.errors import AgentError
    from orchestrator.scheduling.store import server_of
    from orchestrator.scheduling.view import history as table
    from orchestrator.scheduling.view import run_json, unserved

    path = store_path(store)
    try:
        with opened(path) as found:
            if name is not None:
                named(found, name)
            known = {row.name: row for row in found.playbooks()} if found is not None else {}
            runs = found.runs(name, limit) if found is not None else []
    except AgentError as error:
        return failed(error, as_json, runs=[])
    rows = [run_json(one, known.get(one.playbook)) for one in runs]
    unserved(rows, server_of(path) is not None)
    if as_json:
        print_json({"runs": rows, "error": None})
    else:
        for line in table(rows) if rows else ["Nothing was ever due here."]:
            say(line)
    return 0


def _times(names: tuple[str, ...], path: Path, now: float) -> list[tuple[Any, float, bool]]:
    """(times, since when, whether it is paused) of schedules by name, of playbooks by file, or of
    all that are served."""
    from orchestrator.scheduling.books import read_book
    from orchestrator.scheduling.errors import NothingScheduled
    from orchestrator.scheduling.store import SERVED
    from orchestrator.scheduling.times import Times

    found: list[tuple[Any, float, bool]] = []
    with opened(path) as store:
        salt = store.salt if store is not None else ""
        served = [row for row in store.playbooks() if row.state == SERVED] if store else []
        for name in names or [row.name for row in served]:
            if name.endswith((".yaml", ".yml")) or "/" in name:
                book = read_book(name)
                if book.problem is not None:
                    raise book.problem
                if book.schedule is None:
                    raise NothingScheduled(path=name, detail="the playbook has no schedule")
                found.append((Times(book.schedule, book.name, salt), now, False))
                continue
            row = named(store, name)
            if row.state == SERVED:
                times = Times(row.schedule, name, salt)
                found.append((times, max(row.seen, now), row.paused is not None))
    return found
