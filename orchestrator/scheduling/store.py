"""What was decided and what came of it: an SQLite file, on disk before it is acted upon.

In the user's state directory: streamferry/schedule.db, 0600. Whoever serves it holds its lock
(flock, which does not meet SQLite's own); the other verbs read it, pause, and ask for runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from orchestrator.playbook.model import Schedule
from orchestrator.scheduling.deciding import INTERRUPTED, OVER, RUNNING, WAITING
from orchestrator.scheduling.errors import ServedAlready, StoreDamaged, StoreUnwritten

KEPT = 1000  # runs of a playbook that are over
_APPLICATION = 0x5F_6D_69_67  # "_mig", of the file's header
_VERSION = 1
_PATIENCE = 5.0  # seconds for another process's transaction
_TRIES, _PAUSE = 10, 0.02  # for the lock, and seconds between them
_TABLES = """
CREATE TABLE own (salt TEXT NOT NULL) STRICT;
CREATE TABLE playbooks (
    name TEXT PRIMARY KEY, path TEXT NOT NULL, schedule TEXT, seen INTEGER NOT NULL,
    paused INTEGER, state TEXT NOT NULL, why TEXT NOT NULL
) STRICT;
CREATE TABLE runs (
    playbook TEXT NOT NULL REFERENCES playbooks, due INTEGER NOT NULL, asked INTEGER NOT NULL,
    state TEXT NOT NULL, why TEXT NOT NULL, begun INTEGER, ended INTEGER, times INTEGER NOT NULL,
    digest TEXT NOT NULL, closes INTEGER, drains TEXT NOT NULL, PRIMARY KEY (playbook, due)
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_left ON runs (state);
"""

SERVED, WRONG, GONE = "served", "wrong", "gone"
Json = dict[str, Any]


@dataclass(slots=True)
class Row:
    """A playbook that is or was served. Times are seconds since the epoch."""

    name: str
    path: str
    schedule: Schedule | None  # as it was last right; None where it never was
    seen: float
    paused: float | None = None
    state: str = SERVED
    why: str = ""  # it is wrong, or gone


@dataclass(slots=True)
class Run:
    """One run. `due` is its key, with the playbook."""

    playbook: str
    due: float
    state: str
    why: str = ""
    asked: bool = False
    begun: float | None = None
    ended: float | None = None
    times: int = 0  # how often it was begun or gone on with
    digest: str = ""  # of the playbook as it was begun with
    closes: float | None = None  # when its window ends
    drains: list[Json] = field(default_factory=list)  # [{"id", "node", "outcome"}]


def default_store() -> Path:
    return user_state_path("streamferry") / "schedule.db"


class Store:
    """An open store. Its methods raise `StoreDamaged` and `StoreUnwritten`."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        """`make`: where it is not there. Else it must be."""
        self.path = path
        with self._told():
            if make:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
            os.close(os.open(path, flags, 0o600))  # SQLite would make it with the umask's mode
            self._db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            try:
                self._prepare()
                self.salt = str(self._one("SELECT salt FROM own")[0])
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is changed within, on disk when it is left."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    # --- playbooks

    def playbooks(self) -> list[Row]:
        with self._told():
            rows = self._db.execute("SELECT * FROM playbooks ORDER BY name").fetchall()
            return [_row(one) for one in rows]

    def put(self, row: Row) -> None:
        schedule = row.schedule.model_dump_json(exclude_unset=True) if row.schedule else None
        self._db.execute(
            "INSERT INTO playbooks VALUES (?, ?, ?, ?, NULL, ?, ?) ON CONFLICT (name) DO UPDATE "
            "SET path = excluded.path, schedule = excluded.schedule, seen = excluded.seen, "
            "state = excluded.state, why = excluded.why",  # who pauses it writes `paused`
            (row.name, row.path, schedule, _ms(row.seen), row.state, row.why),
        )

    def pause(self, name: str, since: float | None) -> None:
        self._db.execute("UPDATE playbooks SET paused = ? WHERE name = ?", (_ms(since), name))

    # --- runs

    def runs(self, name: str | None = None, limit: int = -1) -> list[Run]:
        """The last, oldest first."""
        with self._told():
            found = self._db.execute(
                "SELECT * FROM runs WHERE playbook = coalesce(?, playbook) "
                "ORDER BY due DESC, playbook DESC LIMIT ?",
                (name, limit),
            ).fetchall()
            return [_run(one) for one in reversed(found)]

    def left(self) -> list[Run]:
        """Those that are not over, oldest first."""
        with self._told():
            found = self._db.execute(
                "SELECT * FROM runs WHERE state IN (?, ?, ?) ORDER BY due",
                (WAITING, RUNNING, INTERRUPTED),
            ).fetchall()
            return [_run(one) for one in found]

    def add(self, run: Run) -> bool:
        """A new run; False where there is one of this time already."""
        found = self._db.execute(
            "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _values(run)
        )
        return found.rowcount == 1

    def change(self, run: Run) -> None:
        self._db.execute(
            "UPDATE runs SET asked = ?3, state = ?4, why = ?5, begun = ?6, ended = ?7, times = ?8, "
            "digest = ?9, closes = ?10, drains = ?11 WHERE playbook = ?1 AND due = ?2",
            _values(run),
        )

    def forget_later(self, name: str, moment: float) -> None:
        """What was decided of later times, and never begun, by a clock that was wrong."""
        self._db.execute(
            "DELETE FROM runs WHERE playbook = ? AND due > ? AND times = 0", (name, _ms(moment))
        )

    def prune(self, name: str) -> None:
        """Only what is over, and was so long ago."""
        over = ", ".join("?" * len(OVER))
        self._db.execute(
            f"DELETE FROM runs WHERE playbook = ? AND state IN ({over}) AND due < (SELECT due FROM "
            "runs WHERE playbook = ? ORDER BY due DESC LIMIT 1 OFFSET ?)",
            (name, *sorted(OVER), name, KEPT - 1),
        )

    # --- the file

    def _prepare(self) -> None:
        """See that it is ours, and whole; make what is in a new one. Raises `sqlite3.Error`."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if self._empty():
            with self.transaction():
                if self._empty():  # nobody else was quicker
                    self._fill()
        if self._one("PRAGMA application_id")[0] != _APPLICATION:
            raise sqlite3.DatabaseError("it is another program's")
        if (version := self._one("PRAGMA user_version")[0]) != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, and this one has {_VERSION}")
        if (said := self._one("PRAGMA quick_check(1)")[0]) != "ok":
            raise sqlite3.DatabaseError(said)

    def _empty(self) -> bool:
        return not self._one("SELECT count(*) FROM sqlite_master")[0]

    def _fill(self) -> None:
        self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._db.execute(f"PRAGMA user_version = {_VERSION}")
        for statement in filter(str.strip, _TABLES.split(";")):
            self._db.execute(statement)
        self._db.execute("INSERT INTO own VALUES (?)", (secrets.token_hex(8),))

    def _one(self, question: str) -> Any:
        return self._db.execute(question).fetchone()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of SQLite and of the system, in words."""
        try:
            yield
        except sqlite3.OperationalError as error:  # full, read-only, locked, no such table
            raise StoreUnwritten(path=str(self.path), detail=str(error)) from error
        except sqlite3.Error as error:
            raise StoreDamaged(path=str(self.path), detail=str(error)) from error
        except OSError as error:
            detail = error.strerror or str(error)
            raise StoreUnwritten(path=str(self.path), detail=detail) from error
        except (ValueError, TypeError) as error:  # what is in it
            detail = str(error).splitlines()[0]
            raise StoreDamaged(path=str(self.path), detail=detail) from error


class Lock:
    """Of who serves a store, for as long as it lives.

    It is of the database itself, so no other name of it, and nothing that is removed beside it,
    lets a second server in. It is to be taken before the store is opened, and released after that
    was closed: who closes a file loses all locks that SQLite has on it in this process (fcntl).
    """

    def __init__(self, store: Path) -> None:
        """Raises `ServedAlready`, `StoreUnwritten`."""
        try:
            store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(store, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnwritten(path=str(store), detail=error.strerror or "") from error
        try:
            self._take()
        except BlockingIOError:
            pid = _holder(self._fd) or "?"
            os.close(self._fd)
            raise ServedAlready(path=str(store), pid=str(pid)) from None
        except OSError as error:
            os.close(self._fd)
            raise StoreUnwritten(path=str(store), detail=error.strerror or "") from error

    def release(self) -> None:
        os.close(self._fd)

    def _take(self) -> None:
        """Who only looks whether it is held (`server_of`) holds it for a moment, too."""
        for _ in range(_TRIES):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(_PAUSE)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def server_of(store: Path) -> int | None:
    """The PID of who serves a store, 0 where it cannot be told; None where nobody does.

    Not to be asked while this process has a transaction in it (`Lock`).
    """
    try:
        fd = os.open(store, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> int:
    """The PID of who has a file's lock, as the kernel lists it (proc_locks(5)); else 0."""
    found = os.fstat(fd)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():
                case [_, "FLOCK", _, "WRITE", pid, at, *_] if at == file:
                    return int(pid)
    return 0


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _row(found: tuple[Any, ...]) -> Row:
    name, path, schedule, seen, paused, state, why = found
    made = Schedule.model_validate_json(schedule) if schedule is not None else None
    return Row(name, path, made, seen / 1000, _seconds(paused), state, why)


def _run(found: tuple[Any, ...]) -> Run:
    playbook, due, asked, state, why, begun, ended, times, digest, closes, drains = found
    return Run(
        playbook, due / 1000, state, why, bool(asked), _seconds(begun), _seconds(ended), times,
        digest, _seconds(closes), json.loads(drains),
    )  # fmt: skip


def _values(run: Run) -> tuple[Any, ...]:
    return (
        run.playbook, _ms(run.due), int(run.asked), run.state, run.why, _ms(run.begun),
        _ms(run.ended), run.times, run.digest, _ms(run.closes), json.dumps(run.drains),
    )  # fmt: skip
