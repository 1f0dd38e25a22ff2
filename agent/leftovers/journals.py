"""Reads the journals of a host without taking their locks, and says which cannot be gone by.

A journal without a whole record is that of an agent which died before its first line, where nothing
is behind what is torn. One of a newer format, or one that is damaged, is told apart from it here,
and never settled (recovery refuses those without a first record, too).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from agent import history, journal, private
from agent.errors import ProtocolError
from agent.freeze import FreezeError
from agent.history import History
from agent.journal import JournalError
from agent.leftovers.seen import SeenJournal
from agent.protocol import TABLES
from agent.successor import Successor

EMPTY, DAMAGED, NEWER = "empty", "damaged", "newer"
UNREADABLE, EXPOSED = "unreadable", "exposed"

_FAMILY = history.MAGIC[:-1]  # of every format there will be


def look(directory: Path) -> list[SeenJournal]:
    """All journals there are, by name. Raises `OSError` where the directory cannot be read."""
    found = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    for name in names:
        if match := journal.NAME.fullmatch(name):
            migration, role = match.groups()
            try:
                found.append(_look(directory / name, migration, role))
            except FileNotFoundError:  # it has ended meanwhile
                continue
            except (OSError, JournalError):
                path = str(directory / name)
                found.append(SeenJournal(migration, role, path, False, UNREADABLE))
    return found


def _look(path: Path, migration: str, role: str) -> SeenJournal:
    fd = journal.opened(path, os.O_RDONLY)
    try:
        exposed = EXPOSED if _is_exposed(fd) else ""
        busy = _is_busy(fd)
        problem, entries = read(fd, role)
    finally:
        os.close(fd)
    if problem:
        return SeenJournal(migration, role, str(path), busy, problem)
    history = History(migration, role, entries)
    facts = history.facts
    try:
        successor = Successor(history)
        return SeenJournal(
            migration,
            role,
            str(path),
            busy,
            exposed,
            history.state,
            plan=successor.plan,
            agent=(int(facts.get("agent", 0)), int(facts.get("agent_born", 0))),
            agent_state=history.agent[1],
            worker=(int(facts.get("worker", 0)), int(facts.get("worker_born", 0))),
            living=_living(successor),
        )
    except (ProtocolError, TypeError, ValueError):  # whole, but not as this version writes it
        return SeenJournal(migration, role, str(path), busy, NEWER, history.state)


def _living(successor: Successor) -> tuple[int, ...]:
    try:
        return tuple(successor.living)
    except FreezeError:  # it has just ended
        return ()


def _is_exposed(fd: int) -> bool:
    """Whether others may have written it: what it says is told, and not gone by."""
    try:
        private.check_file(fd)
    except private.Exposed:
        return True
    return False


def _is_busy(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def read(fd: int, role: str) -> tuple[str, list[history.Entry]]:
    """What is wrong with an open journal ("" where nothing is), and its records."""
    data = journal.contents(fd)
    if not data.startswith(history.MAGIC):
        if not any(data):
            return EMPTY, []
        return (NEWER if data.startswith(_FAMILY) else DAMAGED), []
    try:
        entries, end = history.whole_records(data)
        states: set[Any] = {entry.state for entry in entries}
    except Exception:  # whole records that are not as this version writes them
        return NEWER, []
    if _goes_on(data, end):
        return DAMAGED, entries
    if not entries:
        return EMPTY, []
    return ("" if states <= {"", *TABLES[role].states} else NEWER), entries


def _goes_on(data: bytes, end: int) -> bool:
    """Whether there is something behind the record that is not whole."""
    head = history.HEAD
    if len(data) < end + head.size:
        return False
    length, _ = head.unpack_from(data, end)
    return any(data[end + head.size + length :])
