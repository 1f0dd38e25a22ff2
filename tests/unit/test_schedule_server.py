"""The server: what is claimed, what is gone on with, and playbooks that change meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.playbook.model import Playbook
from orchestrator.playbook.reading import Checked, PlaybookInvalid, read_playbook
from orchestrator.scheduling import books
from orchestrator.scheduling.errors import NothingScheduled, SameName, ServedAlready
from orchestrator.scheduling.store import Run, Store
from orchestrator.scheduling.view import Silent
from tests.support.polling import until
from tests.support.schedules import NOON, Desk

MINUTELY = {"cron": "* * * * *"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    tmp_path.chmod(0o700)
    return Desk(tmp_path)


async def test_runs_are_claimed_begun_and_their_ends_kept(desk: Desk) -> None:
    desk.write(**MINUTELY, window="5m")
    async with desk.serving():
        (run,) = await desk.at(60, "running")
        assert (run.due, run.begun, run.times, run.closes) == (NOON + 60, NOON + 60, 1, NOON + 360)
        assert [one["node"] for one in run.drains] == ["src"] and run.drains[0]["id"]
        await until(lambda: desk.held)
        desk.held[0].end()
        (run,) = await desk.at(90, "done")
        assert run.ended == NOON + 60 or run.ended == NOON + 90
        await desk.at(120, "done", "running")
        desk.held[1].end("failed", "src: it did not work")
        *_, run = await desk.at(125, "done", "failed")
        assert run.why == "src: it did not work"
    assert desk.seen == [
        ("begun", "nightly"), ("done", "nightly"), ("begun", "nightly"), ("failed", "nightly"),
    ]  # fmt: skip


async def test_a_signal_interrupts_and_the_next_server_goes_on(desk: Desk) -> None:
    desk.write(**MINUTELY)
    async with desk.serving() as server:
        (first,) = await desk.at(60, "running")
    assert [one.due for one in server.interrupted] == [NOON + 60]
    assert [one.state for one in desk.runs()] == ["interrupted"]
    desk.clock.moment = NOON + 70
    async with desk.serving():
        (run,) = await desk.at(75, "running")
        assert (run.times, run.drains, run.begun) == (2, first.drains, NOON + 60)
        desk.held[-1].end()
        await desk.at(80, "done")
    assert len(desk.held) == 2


async def test_killed_between_claim_and_begin_it_is_begun_later_and_once(desk: Desk) -> None:
    desk.write(**MINUTELY)
    async with desk.serving() as server:
        server._begin = lambda runs: None  # type: ignore[method-assign]
        (first,) = await desk.at(60, "running")
        desk.kill()
    assert desk.held == []
    desk.clock.moment = NOON + 100
    async with desk.serving():
        (run,) = await desk.at(100, "running")
        assert run.drains == first.drains
        await until(lambda: desk.held)
        desk.held[0].end()
        await desk.at(101, "done")
    assert len(desk.held) == 1


async def test_killed_before_the_end_was_written_it_is_asked_again(desk: Desk) -> None:
    desk.write(**MINUTELY)
    async with desk.serving():
        await desk.at(60, "running")
        desk.kill()
    assert [one.state for one in desk.runs()] == ["running"]
    async with desk.serving():
        (run,) = await desk.at(61, "running")
        assert run.times == 2


async def test_two_on_one_store_and_after_the_first(desk: Desk) -> None:
    desk.write(**MINUTELY)
    async with desk.serving():
        with pytest.raises(ServedAlready) as told:
            async with desk.serving():
                pass
        assert f"by process {__import__('os').getpid()}" in told.value.message
    async with desk.serving():
        pass


async def test_overlap_and_pause(desk: Desk) -> None:
    desk.write(**MINUTELY, overlap="wait")
    async with desk.serving() as server:
        await desk.at(60, "running")
        await desk.at(120, "running", "waiting")
        with contextlib.closing(Store(desk.path)) as store, store.transaction():
            store.pause("nightly", NOON + 121)
        *_, waited, run = await desk.at(180, "running", "skipped", "skipped")
        assert (waited.why, run.why) == ("it was paused while it waited", "it is paused")
        desk.held[0].end()
        await desk.at(190, "done", "skipped", "skipped")
        with contextlib.closing(Store(desk.path)) as store, store.transaction():
            store.add(Run("nightly", NOON + 195, "waiting", asked=True))
        await desk.at(196, "done", "skipped", "skipped", "running")
        with contextlib.closing(Store(desk.path)) as store, store.transaction():
            store.pause("nightly", None)
        desk.held[1].end()
        await desk.at(197, "done", "skipped", "skipped", "done")
        await desk.at(240, "done", "skipped", "skipped", "done", "running")
        assert server._status() == "1 served, 1 at work"


async def test_an_edited_playbook_counts_from_then_on(desk: Desk) -> None:
    desk.write(cron="0 13 * * *")
    async with desk.serving():
        await desk.at(10)
        desk.write(cron="*/5 * * * *")
        await desk.at(299)
        (run,) = await desk.at(300, "running")
        assert run.due == NOON + 300


async def test_of_what_is_new_nothing_is_made_up_for(desk: Desk) -> None:
    desk.write(cron="*/5 * * * *", missed="run-once")
    async with desk.serving():
        await desk.at(10)
    desk.write(cron="*/4 * * * *", missed="run-once")  # while nobody was there
    desk.clock.moment = NOON + 3590
    async with desk.serving():
        await desk.at(3595)
    desk.clock.moment = NOON + 7000
    async with desk.serving():
        await desk.at(7000, *["missed"] * 14, "running")


async def test_a_clock_that_was_wrong_for_a_while_does_not_end_a_schedule(desk: Desk) -> None:
    desk.write(cron="*/10 * * * *")
    year = 365 * 86400.0
    async with desk.serving():
        desk.clock.moment = NOON + year
        desk.wake()
        await until(lambda: desk.held)
        desk.held[0].end()
        await until(lambda: any(one.state == "done" for one in desk.runs()))
        assert len(desk.runs()) == 1000
        (run,) = await desk.at(700, "done")  # what was never begun is forgotten
        assert run.due == NOON + year and any("was put back" in one for one in desk.notes)
        (*_,) = await desk.at(1200, "running", "done")
        desk.clock.moment = NOON + 900  # by a little: nothing is decided twice
        await desk.at(900, "running", "done")


async def test_a_playbook_that_becomes_wrong_is_not_run_in_its_former_shape(desk: Desk) -> None:
    path = desk.write(**MINUTELY)
    desk.write("other", **MINUTELY)
    async with desk.serving():
        good = path.read_text()
        path.write_text(good.replace("drains", "drain"))
        runs = await desk.at(60, "failed", "running")
        assert "nightly.yaml" in runs[0].why and "its playbook is wrong: " in runs[0].why
        assert any("nightly: its playbook is wrong" in one for one in desk.notes)
        path.write_text(good)
        await desk.at(120, "failed", "running", "running", "skipped")
    assert [one.run.playbook for one in desk.held] == ["other", "nightly"]


@pytest.mark.parametrize("left", ["", "playbook: 1\ndrains:\n  - node: s", '{"playbook": 1, "dr'])
async def test_a_playbook_that_was_cut_off_is_wrong_and_not_gone(desk: Desk, left: str) -> None:
    path = desk.write(**MINUTELY)
    desk.write("other", cron="0 0 1 1 *")
    async with desk.serving():
        path.write_text(left)
        (run,) = await desk.at(60, "failed")
        assert "its playbook is wrong: " in run.why
    async with desk.serving():  # the next server knows it, too
        await desk.at(120, "failed", "failed")
        path.unlink()
        await desk.at(180, "failed", "failed")
        assert any("nightly: its playbook is no longer there" in one for one in desk.notes)


async def test_a_fault_with_one_file_does_not_end_the_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = desk.write(**MINUTELY)
    desk.write("other", **MINUTELY)
    (desk.books / os.fsdecode(b"\xff.yaml")).write_text(path.read_text())

    def read(file: str) -> Checked[Playbook]:
        if file == str(path):
            raise RuntimeError("oh")
        return read_playbook(file)

    async with desk.serving():
        monkeypatch.setattr(books, "read_playbook", read)
        path.touch()
        runs = await desk.at(60, "failed", "running")
        assert runs[0].playbook == "nightly" and "RuntimeError: oh" in runs[0].why


async def test_a_playbook_that_cannot_be_looked_at_is_not_gone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stat = desk.write(**MINUTELY), os.stat

    def denied(file: str, *rest: Any, **more: Any) -> os.stat_result:
        if file == str(path):
            raise PermissionError(13, "Permission denied")
        return stat(file, *rest, **more)

    async with desk.serving():
        monkeypatch.setattr(os, "stat", denied)
        await desk.at(60, "running")
        assert not any("no longer there" in one for one in desk.notes)


async def test_a_playbook_that_is_gone_is_not_run_and_counts_anew_when_it_is_back(
    desk: Desk,
) -> None:
    path = desk.write(**MINUTELY)
    desk.write("other", cron="0 0 1 1 *")
    async with desk.serving():
        path.unlink()
        await desk.at(60)
        await desk.at(150)
        assert any("nightly: its playbook is no longer there" in one for one in desk.notes)
        desk.write(**MINUTELY)
        await desk.at(155)
        (run,) = await desk.at(180, "running")
        assert run.due == NOON + 180
        desk.write()  # no schedule any more
        desk.held[0].end()
        await desk.at(240, "done")


async def test_a_store_that_cannot_be_written_holds_up_and_doubles_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.write(**MINUTELY)
    async with desk.serving():
        await desk.at(60, "running")
        await until(lambda: desk.held)
        blocker = sqlite3.connect(desk.path, isolation_level=None)
        server_db = desk.server._store._db  # type: ignore[union-attr]
        server_db.execute("PRAGMA busy_timeout = 1")
        blocker.execute("BEGIN IMMEDIATE")
        desk.held[0].end()
        desk.clock.moment = NOON + 120
        desk.wake()
        await until(lambda: any("cannot be used: database is locked" in n for n in desk.notes))
        assert len(desk.held) == 1
        blocker.execute("ROLLBACK")
        blocker.close()
        await desk.at(121, "done", "running")
    assert len(desk.held) == 2


async def test_what_fails_inside_is_an_end_of_that_run_alone(desk: Desk) -> None:
    desk.write(**MINUTELY)
    async with desk.serving():
        await desk.at(60, "running")
        await until(lambda: desk.held)
        desk.held[0].ends.set_exception(RuntimeError("oh"))
        (run,) = await desk.at(61, "failed")
        assert "RuntimeError: oh" in run.why
        await desk.at(120, "failed", "running")


# --- what is refused at the start


def test_what_cannot_be_served_at_all(desk: Desk, tmp_path: Path) -> None:
    async def served(*named: Path) -> None:
        async with desk.serving(*map(str, named)):
            pass

    def refused(*named: Path) -> Exception:
        with pytest.raises(Exception) as told:
            asyncio.run(served(*named))
        assert not desk.path.exists()
        return told.value

    plain = desk.write("plain")
    assert "no such file" in str(refused(tmp_path / "none.yaml"))
    assert "not UTF-8" in str(refused(tmp_path / os.fsdecode(b"\xff.yaml")))
    assert isinstance(refused(plain), NothingScheduled)
    assert "no playbook in it has a schedule" in str(refused(desk.books))
    never = desk.write("never", cron="0 0 30 2 *")
    assert "never fires" in str(refused(never)) and isinstance(refused(never), PlaybookInvalid)
    zone = desk.write("zone", cron="0 0 1 1 *", time_zone="Europe/Berlyn")
    assert "no time zone is named `Europe/Berlyn`" in str(refused(zone))
    grace = desk.write("grace", cron="0 0 1 1 *", window="1m", grace="2m")
    assert "nothing left of the window of 1m" in str(refused(grace))
    good, there = desk.write(**MINUTELY), tmp_path / "nightly.yaml"
    there.write_text(good.read_text())
    assert isinstance(refused(good, there), SameName)


async def test_one_that_is_wrong_does_not_keep_the_others_from_being_served(desk: Desk) -> None:
    desk.write("never", cron="0 0 30 2 *")
    (desk.books / "hosts.yaml").write_text("inventory: 1\nhosts: {src: {}}\n")
    desk.write(**MINUTELY)
    async with desk.serving():
        await desk.at(60, "running")
        assert [one for one in desk.notes if "never fires" in one] and len(desk.notes) == 1


async def test_a_playbook_that_takes_long_to_read_holds_nothing_up(desk: Desk) -> None:
    desk.write(**MINUTELY)
    held, asked = threading.Event(), threading.Event()
    async with desk.serving() as server:
        now = server._books.now

        def slowly() -> list[books.Book]:
            asked.set()
            assert held.wait(30)
            return now()

        server._books.now = slowly  # type: ignore[method-assign]
        try:
            await until(lambda: desk.wake() or asked.is_set())  # the loop goes on meanwhile
        finally:
            held.set()
        await desk.at(60, "running")


async def test_what_came_due_while_files_were_read_is_run_as_they_are_then(desk: Desk) -> None:
    path = desk.write(**MINUTELY)
    held, have = threading.Event(), threading.Event()
    async with desk.serving() as server:
        now = server._books.now

        def slowly() -> list[books.Book]:
            found = now()
            have.set()
            assert held.wait(30)
            return found

        server._books.now = slowly  # type: ignore[method-assign]
        try:
            await until(lambda: desk.wake() or have.is_set())
            path.write_text(path.read_text().replace("drains", "drain"))
            desk.clock.moment = NOON + 60
        finally:
            held.set()
        (run,) = await desk.at(60, "failed")
        assert "its playbook is wrong" in run.why and not desk.held


async def test_what_happens_is_in_the_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "orchestrator.scheduling.server")
    book = desk.write(**MINUTELY)
    async with desk.serving():
        (run,) = await desk.at(60, "running")
        await desk.at(120, "running", "skipped")
        await until(lambda: desk.held)
        desk.held[0].end("failed", "src: it did not work")
        await desk.at(125, "failed", "skipped")
        book.write_text(book.read_text().replace("drains", "drain"))
        await until(lambda: desk.wake() or "playbook wrong" in caplog.messages)
    lines = [one.__dict__ for one in caplog.records]
    assert [(one["levelname"], one["msg"], one.get("state")) for one in lines] == [
        ("INFO", "run begun", "running"), ("INFO", "run over", "skipped"),
        ("ERROR", "run over", "failed"), ("WARNING", "playbook wrong", None),
    ]  # fmt: skip
    assert lines[2]["why"] == "src: it did not work"
    assert lines[0]["drains"] == [one["id"] for one in run.drains]
    assert {one["playbook"] for one in lines} == {"nightly"} and lines[3]["path"] == str(book)


def test_a_quiet_server_says_what_failed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for state in ("done", "skipped", "failed"):
        Silent().ended(Run("nightly", NOON, state, "src: it did not work"), [])
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("nightly") == 1
    assert "is failed: src: it did not work" in told.err
