"""Ranges, against a set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.memory.ranges import Range, Ranges, joined

_STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20)), max_size=30
)  # fmt: skip


@given(_STEPS)
def test_they_are_what_a_set_would_be(steps: list[tuple[bool, int, int]]) -> None:
    ranges, numbers = Ranges(), set[int]()
    for add, start, length in steps:
        some = set(range(start, start + length))
        if add:
            ranges.add(start, start + length)
            numbers |= some
        else:
            taken = ranges.cut(start, start + length)
            assert {one for first, last in taken for one in range(first, last)} == numbers & some
            numbers -= some
        found = list(ranges)
        assert {one for first, last in found for one in range(first, last)} == numbers
        assert all(first < last for first, last in found)
        assert all(one[1] < other[0] for one, other in zip(found, found[1:], strict=False))
        assert ranges.size == len(numbers) and bool(ranges) == bool(numbers)
        for one in range(82):
            end = ranges.end_at(one)
            assert (end is not None) == (one in numbers)
            assert end is None or (end not in numbers and set(range(one, end)) <= numbers)
        if numbers:
            first = ranges.first(3)
            assert first is not None and first[0] == min(numbers) and 0 < first[1] - first[0] <= 3


_PAGES = st.sets(st.integers(0, 200))


def runs(numbers: set[int]) -> list[Range]:
    ranges = Ranges()
    for one in sorted(numbers):
        ranges.add(one, one + 1)
    return list(ranges)


@given(_PAGES, _PAGES, st.integers(0, 9))
def test_what_is_between_two_that_are_near(some: set[int], others: set[int], most: int) -> None:
    there = some | others
    found = joined(runs(some), runs(there), most)
    numbers = {one for first, last in found for one in range(first, last)}
    assert some <= numbers <= there
    assert all(one[1] < other[0] for one, other in zip(found, found[1:], strict=False))
    for (_, end), (start, _) in zip(found, found[1:], strict=False):
        assert start - end > most or not set(range(end, start)) <= there
    for between in runs(numbers - some):
        assert between[1] - between[0] <= most
