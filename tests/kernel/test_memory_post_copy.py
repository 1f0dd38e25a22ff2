"""Memory that comes when the process runs already: what is touched waits, no byte is wrong."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.memory import MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, address, page, pages
from tests.support.pagers import ZEROS
from tests.support.post_copy import Away, away

COUNT = 3000


async def test_all_of_it_comes() -> None:
    async with away(COUNT) as one:
        async with one.link() as (_, filling):
            await one.complete(filling)
        assert await one.read(0, COUNT) == pages(0, COUNT)


async def test_what_has_come_ahead_is_not_asked_for() -> None:
    async with away(COUNT, ahead=2000) as one:
        async with one.link() as (end, filling):
            await one.complete(filling)
            assert sum(len(record["data"]) for record in end.other.sent) == 1000 * 4096
            assert await one.read(0, COUNT) == pages(0, COUNT)


async def test_who_touches_it_waits_until_the_link_is_there() -> None:
    async with away(COUNT) as one:
        reading = asyncio.ensure_future(one.read(2500, 2))
        assert not (await asyncio.wait({reading}, timeout=0.1))[0]
        async with one.link() as (_, filling):
            assert await asyncio.wait_for(reading, 30) == pages(2500, 2)
            await one.complete(filling)


async def test_what_is_touched_comes_before_the_rest() -> None:
    async with away(50_000) as one:
        reading = asyncio.ensure_future(one.read(49_000))
        await asyncio.sleep(0.05)
        async with one.link() as (end, filling):
            assert await asyncio.wait_for(reading, 30) == page(49_000)
            assert sum(len(record["data"]) for record in end.other.sent) < 20_000 * 4096
            await one.complete(filling)


async def test_the_link_is_cut_again_and_again() -> None:
    async with away(20_000) as one:
        reading = asyncio.ensure_future(one.read(0, 20_000))
        for number in range(5):
            async with one.link(again=number > 0) as (end, filling):
                await end.other.has_sent(8, filling)
                end.cut()
        async with one.link(again=True) as (_, filling):
            await one.complete(filling)
            assert await asyncio.wait_for(reading, 30) == pages(0, 20_000)


async def test_the_pager_is_killed_meanwhile() -> None:
    async with away(20_000) as one:
        reading = asyncio.ensure_future(one.read(10_000, 10_000))
        async with one.link() as (end, filling):
            for _ in range(2):
                before = len(end.other.sent)
                await end.other.has_sent(before + 3, filling)
                one.site.kill()
            await one.complete(filling)
            assert await asyncio.wait_for(reading, 30) == pages(10_000, 10_000)
            assert await one.read(0, 20_000) == pages(0, 20_000)


async def test_what_it_writes_is_not_written_over() -> None:
    async with away(COUNT) as one:
        writing = asyncio.ensure_future(asyncio.to_thread(one.process.write, 100, page(100, 1)))
        async with one.link() as (_, filling):
            await asyncio.wait_for(writing, 30)
            await one.complete(filling)
            expected = pages(0, 100) + page(100, 1) + pages(101, COUNT - 101)
            assert await one.read(0, COUNT) == expected


async def test_what_it_gives_up_stays_given_up() -> None:
    async with away(COUNT) as one:
        await asyncio.to_thread(one.process.advise, 500, 1000, MADV_DONTNEED)
        async with one.link() as (_, filling):
            await one.complete(filling)
            expected = pages(0, 500) + 1000 * ZEROS + pages(1500, COUNT - 1500)
            assert await one.read(0, COUNT) == expected


async def test_what_it_moves_comes_to_where_it_moved_it() -> None:
    async with away(COUNT) as one:
        move = (address(1000), 500 * 4096, 500 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, address(9000))
        await asyncio.to_thread(one.process.do, "mremap", *move)
        async with one.link() as (_, filling):
            assert await one.read(9123) == page(1123)
            await one.complete(filling)
            assert await one.read(9000, 500) == pages(1000, 500)
            assert await one.read(0, 1000) == pages(0, 1000)
            assert await one.read(1500, 1500) == pages(1500, 1500)


async def test_a_child_has_it_too() -> None:
    async with away(COUNT) as one:
        child = await asyncio.to_thread(one.process.fork)
        reading = asyncio.ensure_future(asyncio.to_thread(child.read, 0, COUNT))
        async with one.link() as (_, filling):
            assert await asyncio.wait_for(reading, 30) == pages(0, COUNT)
            await one.complete(filling)
            assert await one.read(0, COUNT) == pages(0, COUNT)


async def test_pages_of_zeros_go_without_data() -> None:
    async with away(0) as one:
        one.source.map(0, 1000)
        one.source.write(0, 300 * ZEROS + pages(300, 10) + 100 * ZEROS)
        one.process.map(0, 1000)
        one.owe((0, 410))
        one.site.image((0, 1000))
        await one.site.restore((0, 1000))
        one.site.paging.fill()
        async with one.link() as (end, filling):
            await one.complete(filling)
            assert sum(len(record["data"]) for record in end.other.sent) == 10 * 4096
        assert await one.read(0, 1000) == 300 * ZEROS + pages(300, 10) + 690 * ZEROS


_HALF = 64  # pages


async def half_locked(one: Away) -> None:
    """Half of its pages may not be paged out: CRIU has restored them, though we were told of all
    that there is."""
    one.source.map(0, 2 * _HALF)
    one.source.write(0, pages(0, 2 * _HALF))
    one.process.map(0, 2 * _HALF)
    one.process.write(_HALF, pages(_HALF, _HALF))
    one.owe((0, 2 * _HALF))
    one.site.image((0, _HALF), there=((_HALF, _HALF),))
    await one.site.restore((0, _HALF))
    one.site.paging.fill()


async def test_what_criu_has_restored_does_not_come_again() -> None:
    async with away(0) as one:
        await half_locked(one)
        async with one.link() as (end, filling):
            await one.complete(filling)
            assert sum(len(record["data"]) for record in end.other.sent) == _HALF * 4096
        assert await one.read(0, 2 * _HALF) == pages(0, 2 * _HALF)


async def test_what_grows_to_where_something_was_locked_is_empty() -> None:
    async with away(0) as one:
        await half_locked(one)
        one.process.do("munmap", address(_HALF), _HALF * 4096)
        one.process.do("mremap", address(0), _HALF * 4096, 2 * _HALF * 4096, 0, 0)
        async with one.link() as (_, filling):
            await one.complete(filling)
            assert await one.read(0, 2 * _HALF) == pages(0, _HALF) + _HALF * ZEROS


async def test_what_criu_was_told_nothing_of_comes() -> None:
    async with away(0) as one:
        one.source.map(0, 1000)
        one.source.write(0, pages(0, 1000, 1))
        one.process.map(0, 1000)
        one.owe((0, 600))
        one.site.image(hidden=((0, 1000),))
        await one.site.restore((0, 1000))
        one.site.paging.fill()
        async with one.link() as (_, filling):
            await one.complete(filling)
        assert await one.read(0, 1000) == pages(0, 600, 1) + 400 * ZEROS


async def test_it_ends_meanwhile() -> None:
    async with away(COUNT) as one:
        await asyncio.to_thread(one.process.end)
        async with one.link() as (_, filling):
            await one.complete(filling)


@pytest.mark.parametrize("cut", [False, True])
async def test_what_was_written_last_is_what_comes(cut: bool) -> None:
    """Not what came ahead of it."""
    async with away(0) as one:
        one.source.map(0, 1000)
        one.source.write(0, pages(0, 1000, 2))
        one.process.map(0, 1000)
        one.site.send(0, pages(0, 1000, 1))
        one.owe((100, 1), (102, 1), (200, 300), (999, 1))
        one.site.image((0, 1000))
        await one.site.restore((0, 1000))
        one.site.paging.fill()
        if cut:
            async with one.link() as (end, _):
                end.cut()
        async with one.link(again=cut) as (_, filling):
            await one.complete(filling)
        fresh = {100, 102, 999, *range(200, 500)}
        expected = b"".join(page(n, 2 if n in fresh else 1) for n in range(1000))
        assert await one.read(0, 1000) == expected
