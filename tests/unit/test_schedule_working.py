"""A run at work: real drains, over hosts that are no more than a table."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from agent.plan import new_id
from orchestrator.draining import journal as journals
from orchestrator.draining.conductor import Conductor
from orchestrator.playbook import loading
from orchestrator.playbook.known import Known
from orchestrator.scheduling.books import read_book
from orchestrator.scheduling.store import Run
from orchestrator.scheduling.working import Drains, Ended
from tests.support.drain_site import Site, site
from tests.support.polling import until
from tests.support.schedules import NOON, Desk, HandClock

__all__ = ["site"]


class Place:
    """A playbook of two drains, and runs of it."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site, self.desk, self.clock = site, Desk(directory), HandClock()
        self.kept: list[list[tuple[str, str]]] = []
        self.write()

    def write(self, **first: Any) -> None:
        self.path = self.desk.write(
            drains=[
                {"node": "src", "to": ["dst"], **first},
                {"node": "spare", "to": ["dst"], "on_failure": "stop"},
                {"node": "dst", "to": ["spare"], "cordon": False, "workloads": [
                    {"name": "none", "select": {"port": 9}, "optional": True}]},
            ],
            cron="0 3 * * *",
        )  # fmt: skip

    def claim(self, closes: float | None = None) -> Run:
        book = read_book(str(self.path))
        drains = [{"id": new_id(), "node": one, "outcome": ""} for one in book.drains]
        return Run("nightly", NOON, "running", digest=book.digest, closes=closes, drains=drains)

    def work(self, run: Run) -> Drains:
        site = self.site
        conductor = functools.partial(
            Conductor, records=site.records, reach=lambda _: site.world, make=site.moves
        )

        def keep(run: Run) -> None:
            self.kept.append([(one["node"], one["outcome"]) for one in run.drains])

        now = self.clock.now
        return Drains(run, str(self.path), keep, site.told, None, None, now, conductor)

    async def go(self, run: Run) -> Ended:
        async with asyncio.timeout(10):
            return await self.work(run).go()


@pytest.fixture
def place(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(loading, "Known", lambda files, hosts: Known([], hosts, lambda name: True))
    return Place(site, tmp_path)


def outcomes(run: Run) -> list[str]:
    return [one["outcome"] for one in run.drains]


async def test_all_drains_in_order_under_the_ids_of_the_claim(place: Place) -> None:
    place.site.world.start(4101)
    place.site.world.start(4102, "spare")
    run = place.claim()
    ids = [one["id"] for one in run.drains]
    ended = await place.go(run)
    assert (ended.why, ended.state) == ("", "done")
    assert outcomes(run) == ["drained", "drained", "nothing-to-do"]
    assert [one["id"] for one in run.drains] == [*ids[:2], ""]
    assert [one["node"] for one in ended.results] == ["src", "spare", "dst"]
    assert place.site.where(4101, 4102) == ["dst", "dst"]
    assert place.kept[0] == [("src", "drained"), ("spare", ""), ("dst", "")]


async def test_interrupted_and_gone_on_with_by_the_journal(place: Place) -> None:
    for pid in (4101, 4102):
        place.site.world.start(pid)
    place.site.world.start(4103, "spare")
    place.site.world.gates[4102] = asyncio.Event()
    run = place.claim()
    work = place.work(run)
    going = asyncio.create_task(work.go())
    await until(lambda: ("begin", "4102") in place.site.world.timeline)
    work.interrupt()
    assert (await going).state == "interrupted"
    assert outcomes(run) == ["", "", ""] and place.site.where(4101, 4102) == ["dst", "src"]
    place.site.world.gates.clear()
    ended = await place.go(run)
    assert ended.state == "done" and outcomes(run) == ["drained", "drained", "nothing-to-do"]
    assert len(place.site.world.moves) == 4 and journals.unfinished() == []


async def test_killed_after_the_drain_and_before_its_end_was_written(place: Place) -> None:
    place.site.world.start(4101)
    run = place.claim()
    await place.go(run)
    for one, known in zip(run.drains, place.claim().drains, strict=True):
        one["outcome"], one["id"] = "", one["id"] or known["id"]
    place.site.world.start(4104)  # it has come since, and is none of this run
    ended = await place.go(run)
    assert ended.state == "done" and place.site.where(4104) == ["src"]


async def test_a_drain_that_fails_ends_the_run_where_told_so(place: Place) -> None:
    place.site.world.start(4102, "spare")
    place.site.world.obstacles[4102] = "process 7 (sh)"
    place.site.world.unreachable.add("src")
    run = place.claim()
    ended = await place.go(run)
    assert (ended.state, outcomes(run)) == ("failed", ["refused", "refused", ""])
    assert "src: src cannot be reached" in ended.why and "dst was not begun" in ended.why


async def cut_off(place: Place) -> Run:
    """A run that was interrupted when the second of its two workloads was on the move."""
    for pid in (4101, 4102):
        place.site.world.start(pid)
    place.site.world.gates[4102] = asyncio.Event()
    run = place.claim()
    work = place.work(run)
    going = asyncio.create_task(work.go())
    await until(lambda: ("begin", "4102") in place.site.world.timeline)
    work.interrupt()
    await going
    return run


async def test_a_playbook_that_has_changed_is_not_begun_but_what_was_is_ended(
    place: Place,
) -> None:
    run = await cut_off(place)
    place.site.world.gates.clear()
    place.write(max_parallel=2)
    ended = await place.go(run)
    assert ended.state == "failed" and place.site.where(4101, 4102) == ["dst", "dst"]
    assert outcomes(run)[:2] == ["drained", "failed"]
    assert "is not what it was when this run was claimed" in ended.why
    fresh = place.claim()
    place.path.unlink()
    gone = await place.go(fresh)
    assert gone.state == "failed" and "cannot be read" in gone.why


async def test_after_its_window_nothing_is_begun_and_what_was_is_settled(place: Place) -> None:
    place.site.world.start(4101)
    run = place.claim(closes=NOON + 60)
    place.clock.moment = NOON + 60
    ended = await place.go(run)
    assert ended.state == "failed" and "its window ended at" in ended.why
    assert place.site.world.timeline == [] and place.site.world.cordons == {}

    place.clock.moment = NOON
    place.site.world.start(4102)
    place.site.world.gates[4101] = asyncio.Event()
    run = place.claim(closes=NOON + 60)
    going = asyncio.create_task(place.go(run))
    await until(lambda: ("begin", "4101") in place.site.world.timeline)
    place.clock.moment = NOON + 61
    place.site.world.gates[4101].set()
    ended = await going
    assert ended.state == "failed" and place.site.where(4101, 4102) == ["dst", "src"]
    assert "its window ended at" in ended.why
    assert f"(`migrate drain --resume {run.drains[0]['id']}` goes on)" in ended.why
    assert outcomes(run) == ["incomplete", "failed", ""]


async def test_one_that_somebody_is_at_work_on_is_left_to_them(place: Place) -> None:
    run = await cut_off(place)
    held = journals.Journal.open(run.drains[0]["id"])
    ended = await place.go(run)
    held.close()
    assert ended.state == "failed" and "another `migrate drain` is at work on it" in ended.why
    assert run.drains[0]["id"]


async def test_interrupted_while_its_hosts_are_looked_up_it_is_not_begun(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.site.world.start(4101)
    run = place.claim()
    work = place.work(run)
    whole = loading.load

    def slow(*arguments: Any) -> Any:
        work.interrupt()
        return whole(*arguments)

    monkeypatch.setattr("orchestrator.scheduling.working.load", slow)
    assert (await work.go()).state == "interrupted"
    assert place.site.world.timeline == [] and outcomes(run) == ["", "", ""]
