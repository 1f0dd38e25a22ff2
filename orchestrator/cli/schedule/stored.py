"""The store of schedules, as the verbs see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

STORE = click.option("--store", metavar="FILE", help="Where it is kept; else in the user's state.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")


def store_path(store: str | None) -> Path:
    from orchestrator.scheduling.store import default_store

    return Path(store).absolute() if store is not None else default_store()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """None where nothing was ever served. Raises `AgentError`."""
    from orchestrator.scheduling.store import Store

    if not path.exists():
        yield None
        return
    with contextlib.closing(Store(path)) as store:
        yield store


@contextlib.contextmanager
def changing(path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """The store within a transaction, and a schedule of it. Raises `AgentError`."""
    with opened(path) as store:
        if store is None:
            named(store, name)
        with store.transaction():
            yield store, named(store, name)


def named(store: Any, name: str) -> Any:
    """The row of a schedule. Raises `UnknownSchedule`."""
    from orchestrator.playbook.rules import meant
    from orchestrator.scheduling.errors import UnknownSchedule

    rows = {row.name: row for row in store.playbooks()} if store is not None else {}
    if name not in rows:
        known = f"Those are: {', '.join(rows)}." if rows else "Nothing was ever served here."
        raise UnknownSchedule(name=name, hint=meant(name, rows) or known)
    return rows[name]


def say(text: str) -> None:
    from orchestrator import report

    report.say(report.plain(text))
