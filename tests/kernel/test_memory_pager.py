"""The pager gives a process its memory when it is touched, and then all of it: no byte is wrong.

What the process does with its memory meanwhile counts: what it gave up stays given up, what it
moved is where it moved it, what it wrote is not written over.
"""

from __future__ import annotations

import errno
import os

import pytest

from agent.kernel import userfault
from tests.support.memory import (
    MADV_DONTNEED,
    MADV_FREE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    address,
    page,
    pages,
    until,
)
from tests.support.pagers import ZEROS, restored, site, waiting

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def test_userfaultfd_works_here() -> None:
    before = os.listdir("/proc/self/fd")
    userfault.attempt()
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_what_is_touched_comes_at_once_and_the_rest_when_told() -> None:
    async with restored(3000) as one:
        assert one.process.read(0) == page(0)
        assert one.process.read(1234, 2) == pages(1234, 2)
        one.process.write(2000, page(2000, 1))
        faults = await one.all_in_place()
        assert faults >= 3
        expected = pages(0, 2000) + page(2000, 1) + pages(2001, 999)
        assert one.process.read(0, 3000) == expected
        assert await one.gone() == 0


async def test_nothing_is_touched() -> None:
    async with restored(3000) as one:
        assert await one.all_in_place() == 0
        assert one.process.read(0, 3000) == pages(0, 3000)


async def test_all_of_it_is_touched_before() -> None:
    async with restored(3000) as one:
        assert one.process.read(0, 3000) == pages(0, 3000)
        one.process.write(0, pages(0, 3000, 1))
        await one.all_in_place()
        assert one.process.read(0, 3000) == pages(0, 3000, 1)


async def test_every_second_page_is_there_already() -> None:
    async with site() as one:
        one.ahead(3000)
        for number in range(0, 3000, 2):
            one.process.write(number, page(number, 1))
        await one.restore((0, 3000))
        await one.all_in_place()
        expected = b"".join(page(number, 1 - number % 2) for number in range(3000))
        assert one.process.read(0, 3000) == expected


async def test_what_was_never_sent_is_zeros() -> None:
    async with site() as one:
        one.process.map(0, 300)
        one.send(100, pages(100, 10))
        one.send(200, pages(200, 10))
        one.image((0, 300))
        await one.restore((0, 300))
        assert one.process.read(50) == ZEROS
        assert one.process.read(105) == page(105)
        await one.all_in_place()
        expected = 100 * ZEROS + pages(100, 10) + 90 * ZEROS + pages(200, 10) + 90 * ZEROS
        assert one.process.read(0, 300) == expected


async def test_what_is_not_in_the_list_of_pages_had_been_given_up() -> None:
    """It was sent ahead, and then was there no more when the process stood still."""
    async with restored(300, lazy=200) as one:
        assert one.process.read(250) == ZEROS
        assert one.process.read(199) == page(199)
        await one.all_in_place()
        assert one.process.read(0, 300) == pages(0, 200) + 100 * ZEROS


async def test_nothing_was_sent_of_a_process() -> None:
    async with site() as one:
        one.process.map(0, 10)
        one.image()
        await one.restore((0, 10))
        assert one.process.read(0, 5) == 5 * ZEROS
        await one.all_in_place()
        assert one.process.read(0, 10) == 10 * ZEROS


async def test_a_zombie_has_no_memory() -> None:
    async with site() as one:
        one.ahead(10)
        await one.ready((0, 10))
        one.process.do("zombie", 4711)
        one.process.do("give")
        one.process.do("finish")
        await one.paging.restored()
        await one.all_in_place()
        assert one.process.read(0, 10) == pages(0, 10)


async def test_many_threads_wait_at_once() -> None:
    async with restored(3000) as one:
        one.pause()
        threads = [one.process.thread() for _ in range(12)]
        looks = [waiting(thread) for thread in threads]
        numbers = [0, 0, 1, 100, 200, 2999, 2999, 500, 501, 1500, 1500, 1500]
        for thread, number in zip(threads, numbers, strict=True):
            thread.begin("read", address(number), PAGE)
        until(lambda: all(look() for look in looks), "that all wait")
        one.resume()
        for thread, number in zip(threads, numbers, strict=True):
            assert thread.result() == page(number)
        await one.all_in_place()
        assert one.process.read(0, 3000) == pages(0, 3000)


# --- what the process does with its memory meanwhile


async def test_what_it_gives_up_is_zeros_and_stays_so() -> None:
    async with restored(3000) as one:
        one.process.read(150)
        one.process.advise(100, 100, MADV_DONTNEED)
        one.process.advise(1000, 1, MADV_FREE)
        assert one.process.read(100, 100) == 100 * ZEROS
        one.process.advise(300, 50, MADV_DONTNEED)
        one.process.write(310, page(310, 1))
        await one.all_in_place()
        expected = (
            pages(0, 100) + 100 * ZEROS + pages(200, 100)
            + 10 * ZEROS + page(310, 1) + 39 * ZEROS + pages(350, 650) + ZEROS + pages(1001, 1999)
        )  # fmt: skip
        assert one.process.read(0, 3000) == expected


async def test_what_it_unmaps_is_gone_and_another_mapping_there_is_new() -> None:
    async with restored(3000) as one:
        one.process.do("munmap", address(100), 100 * PAGE)
        one.process.do("munmap", address(2900), 100 * PAGE)
        one.process.map(100, 50)
        one.process.write(120, page(120, 1))
        await one.all_in_place()
        assert one.process.read(0, 100) == pages(0, 100)
        assert one.process.read(100, 50) == 20 * ZEROS + page(120, 1) + 29 * ZEROS
        assert one.process.read(200, 2700) == pages(200, 2700)


async def test_what_it_moves_is_where_it_moved_it() -> None:
    async with restored(3000) as one:
        assert one.process.read(1010) == page(1010)
        one.process.do("mremap", address(1000), 500 * PAGE, 500 * PAGE, MOVE, address(5000))
        assert one.process.read(5010, 2) == pages(1010, 2)
        one.process.do("mremap", address(5100), 50 * PAGE, 70 * PAGE, MOVE, address(8000))
        assert one.process.read(8049, 2) == page(1149) + ZEROS
        await one.all_in_place()
        assert one.process.read(0, 1000) == pages(0, 1000)
        assert one.process.read(1500, 1500) == pages(1500, 1500)
        assert one.process.read(5000, 100) == pages(1000, 100)
        assert one.process.read(5150, 350) == pages(1150, 350)
        assert one.process.read(8000, 70) == pages(1100, 50) + 20 * ZEROS


async def test_it_moves_over_what_is_left_of_another() -> None:
    async with restored(3000) as one:
        one.process.do("mremap", address(0), 1000 * PAGE, 1000 * PAGE, MOVE, address(1500))
        await one.all_in_place()
        assert one.process.read(1000, 500) == pages(1000, 500)
        assert one.process.read(1500, 1000) == pages(0, 1000)
        assert one.process.read(2500, 500) == pages(2500, 500)


async def test_it_shrinks_and_grows() -> None:
    async with restored(3000) as one:
        one.process.do("mremap", address(0), 3000 * PAGE, 1000 * PAGE, 0, 0)
        one.process.do("mremap", address(0), 1000 * PAGE, 2000 * PAGE, 0, 0)
        assert one.process.read(1500) == ZEROS
        await one.all_in_place()
        assert one.process.read(0, 2000) == pages(0, 1000) + 1000 * ZEROS


async def test_it_moves_and_keeps_the_empty_place() -> None:
    async with restored(1000) as one:
        flags = MOVE | MREMAP_DONTUNMAP
        one.process.do("mremap", address(0), 1000 * PAGE, 1000 * PAGE, flags, address(5000))
        one.process.write(10, page(10, 1))
        await one.all_in_place()
        assert one.process.read(5000, 1000) == pages(0, 1000)
        assert one.process.read(0, 1000) == 10 * ZEROS + page(10, 1) + 989 * ZEROS


async def test_it_splits_its_mappings() -> None:
    """A page is placed in a mapping: none may be missed where one ends."""
    async with restored(3000) as one:
        for number in range(0, 3000, 7):
            one.process.do("mprotect", address(number), PAGE, (PROT_NONE, PROT_READ)[number % 2])
        assert one.process.read(6, 2) == pages(6, 2)
        await one.all_in_place()
        one.process.do("mprotect", address(0), 3000 * PAGE, PROT_READ | PROT_WRITE)
        assert one.process.read(0, 3000) == pages(0, 3000)


async def test_mappings_beside_each_other_and_a_gap() -> None:
    async with site() as one:
        for first, count in ((0, 700), (700, 3), (703, 297), (1500, 500)):
            one.process.map(first, count)
        one.send(0, pages(0, 1000))
        one.send(1500, pages(1500, 500))
        one.image((0, 1000), (1500, 500))
        await one.restore((0, 1000), (1500, 500))
        await one.all_in_place()
        assert one.process.read(0, 1000) == pages(0, 1000)
        assert one.process.read(1500, 500) == pages(1500, 500)


async def test_it_does_all_that_while_it_fills() -> None:
    """By as many threads as there are things to do."""
    async with restored(6000) as one:
        one.paging.fill()
        threads = [one.process.thread() for _ in range(4)]
        for step in range(50):
            first = 100 * step
            threads[0].begin("madvise", address(first), 10 * PAGE, MADV_DONTNEED)
            threads[1].begin("munmap", address(first + 10), 10 * PAGE)
            threads[2].begin(
                "mremap", address(first + 20), 10 * PAGE, 10 * PAGE, MOVE, address(first + 7000)
            )
            threads[3].begin("write", address(first + 40), page(0, 1))
            for thread in threads:
                thread.result()
        await one.filled()
        for step in range(50):
            first = 100 * step
            assert one.process.read(first, 10) == 10 * ZEROS
            assert one.process.read(first + 7000, 10) == pages(first + 20, 10)
            expected = pages(first + 30, 10) + page(0, 1) + pages(first + 41, 59)
            assert one.process.read(first + 30, 70) == expected
        assert one.process.read(5000, 1000) == pages(5000, 1000)


@pytest.mark.parametrize("how", ["munmap", "mremap"])
@pytest.mark.parametrize("number", [5, 250], ids=["data", "zeros"])
async def test_a_page_goes_while_somebody_waits_for_it(how: str, number: int) -> None:
    """A mistake of the process: its system call fails, and all else goes on."""
    async with restored(300, lazy=200) as one:
        one.pause()
        waits, takes = one.process.thread(), one.process.thread()
        look, taking = waiting(waits), waiting(takes)
        waits.begin("send", address(number), PAGE)
        until(look, "that it waits")
        if how == "munmap":
            takes.begin("munmap", address(number), PAGE)
        else:
            takes.begin("mremap", address(number), PAGE, PAGE, MOVE, address(1000))
        until(taking, "that the event waits")
        one.resume()
        takes.result()
        with pytest.raises(OSError) as raised:
            waits.result()
        assert raised.value.errno == errno.EFAULT
        pager = one.pager
        await one.all_in_place()
        assert one.pager == pager, "it has died of it"
        expected = pages(0, 200) + 100 * ZEROS
        assert one.process.read(0, number) == expected[: number * PAGE]
        assert one.process.read(number + 1, 299 - number) == expected[(number + 1) * PAGE :]
        if how == "mremap":
            assert one.process.read(1000) == expected[number * PAGE : (number + 1) * PAGE]
