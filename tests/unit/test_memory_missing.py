"""The list of what is missing, against a dictionary."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.memory.layout import LARGEST, PAGE
from agent.memory.missing import Missing, checked_map, checked_runs
from agent.memory.pagemaps import MOST

BASE = 0x10_0000_0000
_STEP = st.tuples(
    st.sampled_from(["add", "remove", "move", "keep"]),
    st.integers(0, 1500), st.integers(1, 700), st.integers(0, 1500),
)  # fmt: skip


@pytest.fixture
def listed() -> Iterator[Missing]:
    missing = Missing(os.memfd_create("missing"))
    yield missing
    os.close(missing.fd)


def at(number: int) -> int:
    return BASE + number * PAGE


def contents(missing: Missing, first: int = 0, last: int = 5000) -> dict[int, int]:
    return {
        start + offset: origin + offset
        for start, end, origin in missing.ranges(at(first), at(last))
        for offset in range(0, end - start, PAGE)
    }


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_STEP, max_size=12))
def test_it_is_what_a_dictionary_would_be(steps: list[tuple[str, int, int, int]]) -> None:
    missing, known = Missing(os.memfd_create("missing")), dict[int, int]()
    for what, first, count, other in steps:
        end = first + count
        inside = [one for one in known if at(first) <= one < at(end)]
        if what == "add":
            missing.add(at(first), at(end), at(other))
            known.update({at(first + one): at(other + one) for one in range(count)})
        elif what == "remove":
            missing.remove(at(first), at(end))
            for one in inside:
                del known[one]
        elif what == "move":
            if abs(first - other) < count:  # the kernel moves to where it was not
                continue
            missing.move(at(first), at(other), count * PAGE)
            moved = {one + (other - first) * PAGE: known.pop(one) for one in inside}
            for one in [one for one in known if at(other) <= one < at(other + count)]:
                del known[one]
            known.update(moved)
        else:
            missing.keep_only([(at(first), at(end))])
            known = {one: known[one] for one in inside}
        assert contents(missing) == known
        some = {one: origin for one, origin in known.items() if at(200) <= one < at(900)}
        assert contents(missing, 200, 900) == some
    copy = missing.copy()
    missing.remove(0, LARGEST)
    assert contents(copy) == known and contents(missing) == {}
    os.close(copy.fd), os.close(missing.fd)


def test_runs_are_as_long_as_they_can_be(listed: Missing) -> None:
    listed.add(at(0), at(40_000), at(0))
    listed.add(at(40_000), at(40_001), at(5))
    assert list(listed.ranges()) == [
        (at(0), at(40_000), at(0)), (at(40_000), at(40_001), at(5)),
    ]  # fmt: skip


@pytest.mark.parametrize("runs", [
    None, 5, [[0]], [[1, 1]], [[0, 0]], [[0, -1]], [[-PAGE, 1]], [[LARGEST, 1]], [[0, 1, 1]],
    [[0, LARGEST]], [["0", 1]], [[0, 1]] * 4,
])  # fmt: skip
def test_runs_that_are_none(runs: object) -> None:
    with pytest.raises(ProtocolError):
        checked_runs(runs, 3)


def test_what_there_was_is_kept_beside_what_is_missing(listed: Missing) -> None:
    listed.mark(at(0), b"\0\1\1\2\2\0\1")
    assert list(listed.there()) == [(at(1), at(5)), (at(6), at(7))]
    assert list(listed.ranges()) == [(at(3), at(5), at(3))]
    listed.remove(at(3), at(4))
    assert list(listed.ranges()) == [(at(4), at(5), at(4))]


@pytest.mark.parametrize("address, pages", [
    (at(0), "\1"), (at(0), None), (at(0), b"\3"), (at(0), b"\1\xff"), (at(0), b""),
    (at(0) + 1, b"\1"), (-PAGE, b"\1"), (LARGEST, b"\1"), ("0", b"\1"), (None, b"\1"),
    (at(0), bytes(MOST + 1)),
])  # fmt: skip
def test_maps_that_are_none(address: object, pages: object) -> None:
    with pytest.raises(ProtocolError):
        checked_map(address, pages)
