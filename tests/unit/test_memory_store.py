"""The store of pages that come ahead: nothing malformed, no more than allowed, zeros are holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.image.records import ImageTooLarge
from agent.image.store import ImagesDirectory, ImagesFull
from agent.memory import store as module
from agent.memory.layout import LARGEST, PAGE
from agent.memory.space import extents, keep_only
from agent.memory.store import MAX_RUNS, PageStores, file_name
from tests.support.memory import memory_directory, page, pages

PID = 4711
HIGH = 0x7FFF_FFFF_F000  # where a stack ends


@pytest.fixture
def directory() -> Iterator[Path]:
    with memory_directory() as path:
        yield path


@pytest.fixture
def stores(directory: Path) -> Iterator[PageStores]:
    made = PageStores(directory, 100 * PAGE)
    yield made
    made.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def record(runs: Any, data: Any = b"", pid: Any = PID) -> dict[str, Any]:
    return {"kind": "pages", "pid": pid, "runs": runs, "data": data}


def kept(directory: Path, pid: int = PID) -> dict[int, bytes]:
    """The pages in a store that are no holes, by address."""
    fd = os.open(directory / file_name(pid), os.O_RDONLY)
    try:
        return {
            at: os.pread(fd, PAGE, at)
            for start, end in extents(fd)
            for at in range(start, end, PAGE)
        }
    finally:
        os.close(fd)


def test_pages_lie_at_their_addresses(stores: PageStores, directory: Path) -> None:
    taken = stores.take(record([[0x10000, 2, 1], [HIGH, 1, 1]], pages(0, 3)))
    assert taken == 3 * PAGE
    assert stores.take(record([[0x10000, 1, 1]], page(9))) == PAGE
    stores.take(record([[0x5000, 1, 1]], page(5), pid=12))
    expected = {0x10000: page(9), 0x10000 + PAGE: page(1), HIGH: page(2)}
    assert kept(directory) == expected
    assert kept(directory, 12) == {0x5000: page(5)}
    assert (directory / file_name(PID)).stat().st_mode & 0o777 == 0o600


def test_zeros_are_holes(stores: PageStores, directory: Path) -> None:
    stores.take(record([[0, 6, 1]], pages(0, 6)))
    stores.take(record([[PAGE, 2, 0], [3 * PAGE, 1, 1], [5 * PAGE, 1, 0]], page(33)))
    assert kept(directory) == {0: page(0), 3 * PAGE: page(33), 4 * PAGE: page(4)}
    stores.take(record([[0, LARGEST // PAGE, 0]]))
    assert kept(directory) == {}


def test_a_record_of_nothing(stores: PageStores, directory: Path) -> None:
    """Where nothing has changed for long, it says that the source is still there."""
    assert stores.take(record([])) == 0
    assert kept(directory) == {}


def test_the_last_page_there_is(stores: PageStores, directory: Path) -> None:
    stores.take(record([[LARGEST - PAGE, 1, 1]], page(1)))
    assert kept(directory) == {LARGEST - PAGE: page(1)}


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("no pid", {"kind": "pages", "runs": [], "data": b""}),
    *[(f"pid {pid!r}", record([], pid=pid)) for pid in (None, "1", 1.0, True, 1 << 40, [1])],
    *[(f"runs {runs!r}", record(runs)) for runs in (None, {}, "x", 5, [5], [None], [[]])],
    *[(f"data {data!r}", record([[0, 1, 1]], data)) for data in (None, "x" * PAGE, [0], 5)],
    ("two numbers", record([[0, 1]])),
    ("four numbers", record([[0, 1, 0, 0]])),
    ("a name", record([["0", 1, 0]])),
    ("a fraction", record([[0.0, 1, 0]])),
    ("an odd address", record([[1, 1, 0]])),
    ("before all memory", record([[-PAGE, 1, 0]])),
    ("after all memory", record([[LARGEST, 1, 0]])),
    ("to after all memory", record([[LARGEST - PAGE, 2, 0]])),
    ("more than there can be", record([[0, (1 << 64) - 1, 0]])),
    ("no pages", record([[0, 0, 1]])),
    ("fewer than none", record([[PAGE, -1, 0]])),
    ("no data", record([[0, 1, 1]])),
    ("too little data", record([[0, 2, 1]], page(0) + page(1)[:-1])),
    ("too much data", record([[0, 1, 1]], page(0) + b"x")),
    ("data of nobody", record([], b"x")),
    ("data of zeros", record([[0, 1, 0]], page(0))),
    ("too many runs", record([[0, 1, 0]] * (MAX_RUNS + 1))),
]  # fmt: skip


@pytest.mark.parametrize("one", [one for _, one in MALFORMED], ids=[name for name, _ in MALFORMED])
def test_what_is_malformed(stores: PageStores, directory: Path, one: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        stores.take(one)
    stores.take(record([[0, 1, 1]], page(7)))
    assert kept(directory)[0] == page(7), "it still works"


def test_all_runs_that_are_allowed(stores: PageStores) -> None:
    assert stores.take(record([[0, 1, 0]] * MAX_RUNS)) == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), max_size=12))
def test_any_runs(runs: list[tuple[int, int, bool]]) -> None:
    model: dict[int, bytes] = {}
    data = b""
    for place, (first, count, has_data) in enumerate(runs):
        for number in range(first, first + count):
            model.pop(number * PAGE, None)
            if has_data:
                model[number * PAGE] = page(number, place)
                data += page(number, place)
    with memory_directory() as directory:
        stores = PageStores(directory, 1 << 20)
        stores.take(record([[first * PAGE, count, int(has)] for first, count, has in runs], data))
        assert kept(directory) == model
        stores.close()


def test_no_more_than_allowed_of_all_together(stores: PageStores) -> None:
    stores.take(record([[0, 60, 1]], pages(0, 60)))
    stores.take(record([[0, 40, 1]], pages(0, 40), pid=2))
    stores.take(record([[0, 60, 1]], pages(100, 60)))  # the same pages anew take no more room
    with pytest.raises(ImageTooLarge) as raised:
        stores.take(record([[0, 1, 1]], page(0), pid=3))
    assert raised.value.fields == {"length": 101 * PAGE, "limit": 100 * PAGE}


def test_what_has_become_zeros_makes_room(stores: PageStores) -> None:
    for _ in range(5):
        stores.take(record([[0, 100, 1]], pages(0, 100)))
        stores.take(record([[0, 100, 0]]))
        stores.take(record([[HIGH - 100 * PAGE, 100, 1]], pages(0, 100)))
        stores.take(record([[HIGH - 100 * PAGE, 100, 0]]))


def test_too_many_processes(stores: PageStores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROCESSES", 2)
    stores.take(record([], pid=1))
    stores.take(record([], pid=2))
    stores.take(record([], pid=1))
    with pytest.raises(ProtocolError, match="too many"):
        stores.take(record([], pid=3))


def failing(number: int) -> Any:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, ImagesFull), (errno.EDQUOT, ImagesFull), (errno.ENOMEM, ImagesFull),
    (errno.EFBIG, ImagesDirectory), (errno.EIO, ImagesDirectory), (errno.EMFILE, ImagesDirectory),
])  # fmt: skip
@pytest.mark.parametrize("call", ["pwrite", "open"])
def test_what_fails_has_a_name(
    stores: PageStores,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    call: str,
) -> None:
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(kind, match="/dev/shm"):
        stores.take(record([[0, 1, 1]], page(0)))


def test_no_room_for_a_hole(stores: PageStores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "punch_hole", failing(errno.ENOSPC))
    with pytest.raises(ImagesFull):
        stores.take(record([[0, 1, 0]]))


def test_a_write_in_parts_is_completed(
    stores: PageStores, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    stores.take(record([[0, 3, 1], [8 * PAGE, 1, 1]], pages(0, 4)))
    monkeypatch.undo()
    assert kept(directory) == {number * PAGE: page(min(number, 3)) for number in (0, 1, 2, 8)}


def test_not_into_a_file_that_is_there_nor_through_a_link(
    stores: PageStores, directory: Path
) -> None:
    (directory / "elsewhere").write_bytes(b"untouched")
    (directory / file_name(1)).symlink_to(directory / "elsewhere")
    (directory / file_name(2)).write_bytes(b"untouched")
    for pid in (1, 2):
        with pytest.raises(ImagesDirectory, match="File exists"):
            stores.take(record([[0, 1, 1]], page(0), pid=pid))
        assert (directory / file_name(pid)).read_bytes() == b"untouched"


def test_closed_twice_nothing_is_open(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stores = PageStores(directory, 10)
    stores.take(record([]))
    stores.close()
    stores.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- what a store has


def test_extents(memfd: int) -> None:
    assert list(extents(memfd)) == []
    os.ftruncate(memfd, 100 * PAGE)
    assert list(extents(memfd)) == []
    for number in (0, 1, 5, 99):
        os.pwrite(memfd, page(number), number * PAGE)
    os.pwrite(memfd, page(0), HIGH)
    assert list(extents(memfd)) == [
        (0, 2 * PAGE), (5 * PAGE, 6 * PAGE), (99 * PAGE, 100 * PAGE), (HIGH, HIGH + PAGE),
    ]  # fmt: skip


@pytest.mark.parametrize(("lazy", "left"), [
    ([], []),
    ([(0, 10)], [*range(10)]),
    ([(2, 3), (3, 5), (8, 9)], [2, 3, 4, 8]),
    ([(5, 1000)], [5, 6, 7, 8, 9]),
    ([(20, 30)], []),
    ([(0, 6), (2, 4), (9, 12)], [0, 1, 2, 3, 4, 5, 9]),  # one within another
])  # fmt: skip
def test_only_what_is_in_the_ranges_is_kept(
    memfd: int, lazy: list[tuple[int, int]], left: list[int]
) -> None:
    os.pwrite(memfd, pages(0, 10), 0)
    os.pwrite(memfd, page(0), HIGH)
    keep_only(memfd, [(start * PAGE, end * PAGE) for start, end in lazy])
    found = [at // PAGE for start, end in extents(memfd) for at in range(start, end, PAGE)]
    assert found == left
    for number in left:
        assert os.pread(memfd, PAGE, number * PAGE) == page(number)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8))
def test_any_ranges(ranges: list[tuple[int, int]]) -> None:
    fd = os.memfd_create("test")
    os.pwrite(fd, pages(0, 40), 0)
    keep_only(fd, sorted((first * PAGE, (first + count) * PAGE) for first, count in ranges))
    found = [at // PAGE for start, end in extents(fd) for at in range(start, end, PAGE)]
    os.close(fd)
    assert found == sorted(
        {one for first, count in ranges for one in range(first, first + count)} & set(range(40))
    )


def test_maps_of_no_more_pages_than_allowed(stores: PageStores) -> None:
    """Each may be a range by itself to whoever goes through them."""
    for first in (0, 100):
        stores.owe({"pid": 7, "address": first * PAGE, "map": bytes([1, 0]) * 50})
    assert not stores.owed
    with pytest.raises(ImageTooLarge):
        stores.owe({"pid": 7, "address": 0, "map": bytes([1])})
