"""Ranges, against a set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.memory.ranges import Range, Ranges, split

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


_SETS = st.sets(st.integers(0, 40), max_size=30)


def _ranges(numbers: set[int]) -> list[Range]:
    ranges = Ranges()
    for one in numbers:
        ranges.add(one, one + 1)
    return list(ranges)


@given(_SETS, _SETS)
def test_ranges_are_split_by_others(numbers: set[int], others: set[int]) -> None:
    outside, inside = split(_ranges(numbers), _ranges(others))
    assert outside == _ranges(numbers - others)
    assert inside == _ranges(numbers & others)
