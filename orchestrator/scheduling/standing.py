"""How a playbook stands, by what was known of it and what its file says now. Pure."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.playbook.model import Schedule
from orchestrator.scheduling.books import Book
from orchestrator.scheduling.store import GONE, SERVED, WRONG, Row

PUT_BACK = 3600.0  # seconds; by less, what was decided already is waited for


def stands(row: Row | None, book: Book | None, now: float) -> Row | None:
    """The row that follows; None where there is none. What is new or was changed counts from now
    on: nothing is made up for that was never due before anybody's eyes."""
    if book is None:
        if row is None or row.state == GONE:
            return row
        return replace(row, state=GONE, why="its playbook is no longer there, or has no schedule")
    if book.schedule is None:
        error = book.problem
        why = f"its playbook is wrong: {error.message}" if error is not None else "it is wrong"
        known = row if row is not None else Row(book.name, book.path, None, now)
        return replace(known, path=book.path, state=WRONG, why=why)
    if row is None or row.state == GONE or _times(row.schedule) != _times(book.schedule):
        seen = now
    else:
        seen = row.seen if row.seen < now + PUT_BACK else now  # the clock had been wrong
    paused = row.paused if row is not None else None
    return Row(book.name, book.path, book.schedule, seen, paused, SERVED, "")


def _times(schedule: Schedule | None) -> tuple[str, str] | None:
    return (schedule.cron, schedule.time_zone) if schedule is not None else None
