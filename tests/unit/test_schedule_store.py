"""The store: what it keeps, and a file that is damaged, another's, or cannot be written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.playbook.model import Schedule
from orchestrator.scheduling import store as stores
from orchestrator.scheduling.errors import ServedAlready, StoreDamaged, StoreUnwritten
from orchestrator.scheduling.store import Lock, Row, Run, Store, server_of
from tests.support.schedules import NOON

SCHEDULE = Schedule.model_validate({"cron": "0 3 * * SUN", "jitter": "90s", "window": "2h"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "schedule.db"


def filled(path: Path) -> Store:
    store = Store(path, make=True)
    with store.transaction():
        store.put(Row("nightly", "/etc/nightly.yaml", SCHEDULE, NOON))
    return store


def test_what_is_kept_comes_back(path: Path) -> None:
    run = Run("nightly", NOON + 0.123, "running", "so", True, NOON + 1, None, 2, "abc", NOON + 60,
              [{"id": "20260101-000000-abcdef", "node": "src", "outcome": ""}])  # fmt: skip
    with contextlib.closing(filled(path)) as store:
        with store.transaction():
            assert store.add(run) and not store.add(run)
            store.pause("nightly", NOON + 5)
            store.put(Row("nightly", "/srv/nightly.yaml", SCHEDULE, NOON + 60, None, "wrong", "x"))
            store.put(Row("odd", "/srv/odd.yaml", None, NOON, None, "wrong", "y"))
        salt = store.salt
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with contextlib.closing(Store(path)) as store:
        assert store.salt == salt and len(salt) == 16
        assert store.runs() == [run] == store.left()
        rows = store.playbooks()
        assert rows[0] == Row("nightly", "/srv/nightly.yaml", SCHEDULE, NOON + 60, NOON + 5,
                              "wrong", "x")  # fmt: skip
        assert rows[1].schedule is None
        run.state = "done"
        with store.transaction():
            store.change(run)
        assert store.left() == [] and store.runs("nightly")[0].state == "done"


def test_two_may_make_it_at_once(path: Path) -> None:
    def make(salts: list[str]) -> None:
        with contextlib.closing(Store(path, make=True)) as store:
            salts.append(store.salt)

    for _ in range(5):
        salts: list[str] = []
        both = [threading.Thread(target=make, args=(salts,)) for _ in range(4)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert len(salts) == 4 and len(set(salts)) == 1
        path.unlink()


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    with contextlib.closing(filled(path)) as store:
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.add(Run("nightly", NOON, "running"))
            _ = 1 / 0
        assert store.runs() == []


def test_only_what_is_over_is_forgotten_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "KEPT", 3)
    with contextlib.closing(filled(path)) as store:
        with store.transaction():
            for place, state in enumerate(["waiting", "done", "missed", "done", "failed", "done"]):
                store.add(Run("nightly", NOON + place, state))
            store.prune("nightly")
        assert [one.due - NOON for one in store.runs()] == [0, 3, 4, 5]
        assert [one.due - NOON for one in store.runs(limit=2)] == [4, 5]


def damaged(path: Path, says: str) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreDamaged) as told:
        Store(path, make=True)
    assert says in told.value.message and str(path) in told.value.message
    assert "Move it away" in told.value.hint and path.read_bytes() == before


def test_what_is_no_store_is_refused_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"a text that somebody keeps here, longer than a header of SQLite\n" * 20)
    damaged(path, "file is not a database")
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (it)")
    damaged(path, "it is another program's")


def test_a_newer_or_torn_one(path: Path) -> None:
    filled(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 9")
    damaged(path, "it is of version 9")
    path.unlink()
    with contextlib.closing(filled(path)) as store, store.transaction():
        for one in range(2000):
            store.add(Run("nightly", NOON + one, "missed", "why " * 20))
    data = bytearray(path.read_bytes())
    data[8192:8192 + 4096 * 8] = os.urandom(4096 * 8)  # fmt: skip
    path.write_bytes(data)
    damaged(path, "")


def test_rows_that_cannot_be_read(path: Path) -> None:
    filled(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE playbooks SET schedule = '{\"cron\": 3}'")
    with contextlib.closing(Store(path)) as store, pytest.raises(StoreDamaged):
        store.playbooks()


def test_where_it_cannot_be_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file" / "schedule.db", tmp_path):
        with pytest.raises(StoreUnwritten) as told:
            Store(wrong, make=True)
        assert "--store" in told.value.hint
    with pytest.raises(StoreUnwritten):
        Store(path)  # it is not there
    assert not path.exists()


def test_a_full_disk(path: Path) -> None:
    with contextlib.closing(filled(path)) as store:
        store._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreUnwritten, match="full"), store.transaction():
            for one in range(500):
                store.add(Run("nightly", NOON + one, "missed", "why " * 50))
        assert store.runs() == []


def test_the_lock_says_who_holds_it(path: Path) -> None:
    assert server_of(path) is None
    lock = Lock(path)
    assert server_of(path) == os.getpid()
    with pytest.raises(ServedAlready):
        Lock(path)
    lock.release()
    assert server_of(path) is None
    Lock(path).release()


def test_no_other_name_of_the_store_lets_a_second_in(path: Path, tmp_path: Path) -> None:
    lock = Lock(path)
    with contextlib.closing(filled(path)):
        assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing to be removed
    symbolic, hard = tmp_path / "symbolic.db", tmp_path / "hard.db"
    symbolic.symlink_to(path)
    hard.hardlink_to(path)
    for name in (symbolic, hard):
        assert server_of(name) == os.getpid()
        with pytest.raises(ServedAlready, match=f"{os.getpid()}"):
            Lock(name)
    lock.release()
    Lock(hard).release()


def test_the_lock_does_not_meet_those_of_sqlite(path: Path) -> None:
    lock = Lock(path)
    with contextlib.closing(filled(path)) as store, store.transaction():
        store.add(Run("nightly", NOON, "running"))
        code = (
            "import sqlite3, sys; "
            "sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        )
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
        assert b"database is locked" in other.stderr
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 0
    lock.release()
