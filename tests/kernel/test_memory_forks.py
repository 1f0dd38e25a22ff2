"""Children that a process forks while its memory is not all in place: theirs is as it was then."""

from __future__ import annotations

import pytest

from tests.support.memory import (
    MADV_DONTNEED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    address,
    page,
    pages,
)
from tests.support.pagers import ZEROS, restored


async def test_both_have_all_of_it() -> None:
    async with restored(3000) as one:
        assert one.process.read(7) == page(7)
        child = one.process.fork()
        assert child.pid != one.process.pid
        assert child.read(7) == page(7)
        assert child.read(2000) == page(2000)
        assert one.process.read(2500) == page(2500)
        await one.all_in_place()
        assert child.read(0, 3000) == one.process.read(0, 3000) == pages(0, 3000)


async def test_what_either_does_is_not_the_others() -> None:
    async with restored(1000) as one:
        one.process.write(0, page(0, 1))
        child = one.process.fork()
        one.process.advise(100, 100, MADV_DONTNEED)
        one.process.do("munmap", address(300), 100 * PAGE)
        one.process.write(500, page(500, 1))
        child.advise(150, 100, MADV_DONTNEED)
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        child.do("mremap", address(300), 100 * PAGE, 100 * PAGE, flags, address(5000))
        child.write(0, page(0, 2))
        await one.all_in_place()
        expected = page(0, 1) + pages(1, 99) + 100 * ZEROS + pages(200, 100)
        assert one.process.read(0, 300) == expected
        assert one.process.read(400, 600) == pages(400, 100) + page(500, 1) + pages(501, 499)
        assert child.read(0, 300) == page(0, 2) + pages(1, 149) + 100 * ZEROS + pages(250, 50)
        assert child.read(5000, 100) == pages(300, 100)
        assert child.read(400, 600) == pages(400, 600)


async def test_a_child_goes_on_when_its_parent_has_ended() -> None:
    """As a daemon does, twice."""
    async with restored(3000) as one:
        child = one.process.fork()
        grandchild = child.fork()
        child.end()
        one.process.end()
        assert grandchild.read(100) == page(100)
        await one.all_in_place()
        assert grandchild.read(0, 3000) == pages(0, 3000)


async def test_a_parent_goes_on_when_its_child_has_ended() -> None:
    async with restored(3000) as one:
        child = one.process.fork()
        assert child.read(100) == page(100)
        child.end()
        await one.all_in_place()
        assert one.process.read(0, 3000) == pages(0, 3000)


async def test_a_child_that_runs_another_program() -> None:
    async with restored(3000) as one:
        child = one.process.fork().execute()
        child.map(0, 10)
        assert child.read(0, 10) == 10 * ZEROS
        await one.all_in_place()
        assert child.read(0, 10) == 10 * ZEROS
        assert one.process.read(0, 3000) == pages(0, 3000)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_family_of_some_while_it_fills(killed: bool) -> None:
    async with restored(3000) as one:
        children = [one.process.fork(), one.process.fork()]
        children.append(children[0].fork())
        for number, child in enumerate(children):
            child.write(100 * number, page(0, 2 + number))
        if killed:
            one.kill()
        else:
            one.paging.fill()
            children.append(children[2].fork())
            children[3].write(200, page(200))  # as at first
        await one.filled()
        assert one.process.read(0, 3000) == pages(0, 3000)
        for number, child in enumerate(children[:3]):
            first = 100 * number
            expected = pages(0, first) + page(0, 2 + number) + pages(first + 1, 2999 - first)
            assert child.read(0, 3000) == expected
        for child in children[3:]:
            assert child.read(0, 3000) == pages(0, 3000)
