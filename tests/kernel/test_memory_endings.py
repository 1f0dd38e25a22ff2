"""Pagers that are killed, agents that have gone, and processes that end: nobody sees zeros where
memory should be, and no pager stays behind."""

from __future__ import annotations

import contextlib
import os

import pytest

from agent.memory.paging import PagerFailed, Paging
from tests.support.memory import PAGE, address, page, pages, until
from tests.support.pagers import ZEROS, Site, restored, site, waiting

COUNT = 12_000  # pages: so many that filling takes more than one piece


# --- the pager is killed


async def test_another_goes_on() -> None:
    async with restored(3000) as one:
        assert one.process.read(10) == page(10)
        one.process.write(11, page(11, 1))
        first = one.pager
        one.kill()
        await one.all_in_place()
        assert one.pager != first
        assert one.process.read(0, 3000) == pages(0, 11) + page(11, 1) + pages(12, 2988)
        assert await one.gone() == 0


async def test_another_goes_on_in_the_middle() -> None:
    """As far as the first have come when we hear that there is something left."""
    async with restored(COUNT) as one:
        pagers: set[int] = set()

        def told(left: int) -> None:
            if len(pagers) < 2:
                one.kill()
                pagers.add(one.pager)

        one.paging.fill()
        await one.filled(told)
        assert pagers
        assert one.process.read(0, COUNT) == pages(0, COUNT)


async def test_what_was_given_up_before_stays_given_up() -> None:
    async with restored(3000) as one:
        one.process.advise(0, 100, 4)
        one.process.do("mremap", address(100), 100 * PAGE, 100 * PAGE, 3, address(5000))
        one.kill()
        await one.all_in_place()
        assert one.process.read(0, 100) == 100 * ZEROS
        assert one.process.read(5000, 100) == pages(100, 100)
        assert one.process.read(200, 2800) == pages(200, 2800)


@pytest.mark.parametrize("heard", [False, True])
async def test_who_waits_for_a_page_gets_it_from_the_next(heard: bool) -> None:
    """Also one whose fault the killed pager had read already."""
    async with restored(3000, lazy=2000) as one:
        one.pause()
        threads = [one.process.thread() for _ in range(2)]
        looks = [waiting(thread) for thread in threads]
        for thread, number in zip(threads, (100, 2500), strict=True):
            thread.begin("read", address(number), PAGE)
        until(lambda: all(look() for look in looks), "that both wait")
        if heard:
            ((_, _, fd, *_),) = one.paging._spaces
            os.read(fd, 4096)
        one.kill()
        await one.all_in_place()
        assert [thread.result() for thread in threads] == [page(100), ZEROS]
        assert one.process.read(0, 3000) == pages(0, 2000) + 1000 * ZEROS


async def test_killed_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is let alone: it goes on without us."""
    async with restored(COUNT) as one:
        start = Paging._start
        pagers = [one.pager]

        def start_and_kill(paging: Paging) -> None:
            start(paging)
            pagers.append(one.pager)
            if len(pagers) < 4:
                one.kill()

        monkeypatch.setattr(Paging, "_start", start_and_kill)
        one.kill()
        with pytest.raises(PagerFailed):
            await one.filled()
        assert len(set(pagers)) == 4
        one.paging.close()
        assert await one.gone() == 0
        assert one.process.read(0, COUNT) == pages(0, COUNT)


@pytest.mark.parametrize("when", ["connected", "given"])
async def test_killed_in_the_middle_of_the_restore(when: str) -> None:
    """What was not told is lost with it; so whoever restores is told."""
    async with site() as one:
        one.ahead(10)
        await one.ready((0, 10))
        one.pause()
        if when == "given":
            one.process.do("give")
        one.kill()
        await one.gone()
        with contextlib.suppress(BrokenPipeError):
            one.process.do("finish")
        with pytest.raises(PagerFailed):
            await one.paging.restored()


async def test_killed_before_the_restore() -> None:
    async with site() as one:
        one.kill()
        with pytest.raises(PagerFailed):
            await one.paging.ready()


async def test_a_restore_that_was_not_completed() -> None:
    """CRIU has died: nothing is said of it, but for what CRIU's caller sees."""
    async with site() as one:
        one.ahead(10)
        await one.ready((0, 10))
        one.process.do("give")
        one.process.do("finish", False)
        one.kill()
        with pytest.raises(PagerFailed):
            await one.paging.restored()


# --- the agent has gone


async def agent_gone(one: Site) -> None:
    """As when it was killed: its descriptors and its socket are closed."""
    one.paging.close()


async def test_before_the_restore_there_is_nothing_to_do() -> None:
    async with site() as one:
        await one.paging.ready()
        await agent_gone(one)
        assert await one.gone() == 0


async def test_in_the_middle_of_the_restore_it_is_served_to_its_end() -> None:
    async with site() as one:
        one.ahead(3000)
        await one.ready((0, 3000))
        await agent_gone(one)
        one.process.do("give")
        assert one.process.read(1000) == page(1000)
        one.process.do("finish")
        assert await one.gone() == 0
        assert one.process.read(0, 3000) == pages(0, 3000)


async def test_in_the_middle_of_a_restore_that_fails() -> None:
    async with site() as one:
        one.process.map(0, 10)
        await one.ready((0, 10))
        await agent_gone(one)
        one.process.do("finish", False)
        assert await one.gone() == 0


@pytest.mark.parametrize("told", [False, True])
async def test_after_the_restore_it_fills_and_leaves(told: bool) -> None:
    async with restored(COUNT, lazy=COUNT - 100) as one:
        assert one.process.read(10) == page(10)
        child = one.process.fork()
        if told:
            one.paging.fill()
        await agent_gone(one)
        assert child.read(1000) == page(1000)
        assert await one.gone() == 0
        for process in (one.process, child):
            assert process.read(0, COUNT) == pages(0, COUNT - 100) + 100 * ZEROS


async def test_an_agent_that_does_not_listen_for_long() -> None:
    """It hears that all is in place, whatever was told before."""
    async with restored(COUNT) as one:
        one.paging.fill()
        for number in range(0, COUNT, 100):
            assert one.process.read(number) == page(number)
        await one.filled()
        assert one.process.read(0, COUNT) == pages(0, COUNT)


# --- the process ends


@pytest.mark.parametrize("when", ["before it fills", "while it fills"])
async def test_the_process_ends(when: str) -> None:
    async with restored(COUNT) as one:
        assert one.process.read(10) == page(10)
        if when == "while it fills":
            one.paging.fill()
        one.process.end()
        one.paging.fill()
        await one.filled()
        assert await one.gone() == 0


async def test_the_process_ends_while_it_waits_for_a_page() -> None:
    async with restored(COUNT) as one:
        one.pause()
        thread = one.process.thread()
        look = waiting(thread)
        thread.begin("read", address(100), PAGE)
        until(look, "that it waits")
        one.process.end()
        one.resume()
        await one.all_in_place()
        assert await one.gone() == 0


async def test_the_process_ends_and_the_agent_has_gone() -> None:
    async with restored(COUNT) as one:
        one.process.end()
        await agent_gone(one)
        assert await one.gone() == 0


async def test_undone() -> None:
    """Nothing is restored, or it has been killed: the pager goes at once."""
    async with restored(10) as one:
        one.paging.end()
        assert await one.gone() == -9
