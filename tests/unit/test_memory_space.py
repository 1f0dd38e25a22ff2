"""A process's memory on its way into it, with a kernel made by hand."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.userfault import FORK, PAGEFAULT, REMAP, REMOVE, UNMAP, Busy, Event, Gone
from agent.memory import space as module
from agent.memory.layout import PAGE
from agent.memory.space import BUFFER, CLUSTER, Buffer, Space, extents
from tests.support.memory import page, pages

ZEROS = bytes(PAGE)
FD = 9999  # no descriptor


class Kernel:
    """What userfaultfd does for one address space: pages by number, each mapping by its pages."""

    Busy, Gone = Busy, Gone
    PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = PAGEFAULT, FORK, REMAP, REMOVE, UNMAP

    def __init__(self) -> None:
        self.mappings: list[range] = [range(0, 1 << 20)]
        self.there: dict[int, bytes] = {}
        self.woken: list[int] = []
        self.said: deque[Event] = deque()
        self.fails: deque[Exception] = deque()  # of the next that is placed
        self.placed: list[int] = []  # bytes, of each call
        self.tried = 0

    def events(self, fd: int) -> Iterator[Event]:
        assert fd == FD
        while self.said:
            yield self.said.popleft()

    def copy(self, fd: int, address: int, source: int, length: int) -> int:
        return self._place(address, ctypes.string_at(source, length))

    def zero(self, fd: int, address: int, length: int) -> int:
        return self._place(address, bytes(length))

    def wake(self, fd: int, address: int, length: int) -> None:
        assert length == PAGE
        self.woken.append(address // PAGE)

    def _place(self, address: int, data: bytes) -> int:
        assert address % PAGE == 0 and len(data) % PAGE == 0 and data
        self.tried += 1
        if self.fails:
            raise self.fails.popleft()
        first = address // PAGE
        numbers = range(first, first + len(data) // PAGE)
        if not any(numbers[0] in one and numbers[-1] in one for one in self.mappings):
            raise FileNotFoundError(2, "No such file or directory")
        for place, number in enumerate(numbers):
            if number in self.there:
                return place * PAGE  # as far as it came
            self.there[number] = data[place * PAGE : (place + 1) * PAGE]
        self.placed.append(len(data))
        return len(data)

    def fault(self, number: int, offset: int = 0) -> None:
        self.said.append(Event(PAGEFAULT, 0, number * PAGE + offset, 0))

    def say(self, kind: int, *numbers: int) -> None:
        first, second, third = [*(one * PAGE for one in numbers), 0, 0][:3]
        self.said.append(Event(kind, first, second, third))

    def contents(self, first: int, count: int) -> bytes:
        return b"".join(self.there.get(one, b"?" * PAGE) for one in range(first, first + count))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(module, "userfault", kernel)
    return kernel


@pytest.fixture
def store() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


buffer = Buffer()


def with_pages(store: int, *runs: tuple[int, int]) -> Space:
    for first, count in runs:
        os.pwrite(store, pages(first, count), first * PAGE)
    return Space(1, 1, FD, store, os.memfd_create("missing"))


def hear(space: Space) -> list[Space]:
    """As a pager does it."""
    born = space.hear(buffer)
    space.serve(buffer)
    return born


def fill(space: Space) -> None:
    for _ in range(10_000):
        if not space.left:
            return
        space.fill(buffer)
    raise AssertionError("it does not come to an end")


def in_store(store: int) -> set[int]:
    return {at // PAGE for start, end in extents(store) for at in range(start, end, PAGE)}


# --- what is touched


def test_a_touched_page_comes_with_its_neighbours(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 100))
    cluster = CLUSTER // PAGE
    kernel.fault(cluster + 3, offset=17)
    assert hear(space) == []
    assert kernel.contents(cluster + 3, cluster - 3) == pages(cluster + 3, cluster - 3)
    assert len(kernel.there) == cluster - 3 and kernel.woken == []
    assert (space.faults, space.waiting) == (1, False)


def test_a_touched_page_at_the_end_of_what_is_left(kernel: Kernel, store: int) -> None:
    kernel.fault(4)
    hear(with_pages(store, (0, 5), (6, 5)))
    assert kernel.there == {4: page(4)}


@pytest.mark.parametrize("number", [0, 7, 12])
def test_a_touched_page_that_is_not_left_is_zeros(kernel: Kernel, store: int, number: int) -> None:
    kernel.fault(number)
    hear(with_pages(store, (5, 2), (10, 2)))
    assert kernel.there == {number: ZEROS}


def test_one_that_is_there_already_is_only_woken(kernel: Kernel, store: int) -> None:
    """Two threads touched the same page, or another one's neighbours came along."""
    space = with_pages(store, (0, 5))
    kernel.fault(2)
    kernel.fault(2)
    kernel.fault(3)
    kernel.fault(50)
    kernel.fault(50)
    hear(space)
    assert kernel.woken == [2, 3, 50]
    assert kernel.contents(2, 3) == pages(2, 3) and kernel.there[50] == ZEROS


@pytest.mark.parametrize("number", [2, 50], ids=["data", "zeros"])
def test_one_whose_mapping_has_gone_is_only_woken(kernel: Kernel, store: int, number: int) -> None:
    space = with_pages(store, (0, 5))
    kernel.mappings = [range(10, 20)]
    kernel.fault(number)
    hear(space)
    assert kernel.woken == [number] and kernel.there == {} and not space.waiting


def test_while_mappings_change_it_waits(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 5))
    kernel.fault(50)
    kernel.fault(3)
    kernel.fails.append(Busy())
    hear(space)
    assert space.waiting and kernel.there == {}
    kernel.fails.append(Busy())
    space.serve(buffer)
    assert space.waiting and kernel.tried == 2
    space.serve(buffer)
    assert not space.waiting and kernel.there.keys() == {50, 3, 4}
    assert space.faults == 2


def test_what_waited_is_served_by_what_has_happened_since(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 5))
    kernel.fault(3)
    kernel.fault(100)
    kernel.fails.append(Busy())
    hear(space)
    kernel.say(REMAP, 3, 100, 1)
    hear(space)
    assert kernel.there == {3: ZEROS, 100: page(3)}


def test_a_fault_is_served_after_what_was_said_with_it(kernel: Kernel, store: int) -> None:
    """The kernel tells of faults before it tells of what happened earlier."""
    space = with_pages(store, (0, 5))
    kernel.fault(1)
    kernel.say(REMOVE, 0, 5)
    hear(space)
    assert kernel.there == {1: ZEROS}


def test_gone_while_it_is_served(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 5))
    kernel.fault(1)
    kernel.fails.append(Gone())
    assert space.hear(buffer) == []
    with pytest.raises(Gone):
        space.serve(buffer)


# --- what is filled in


def test_all_is_placed_and_nothing_stays_in_the_store(kernel: Kernel, store: int) -> None:
    large = BUFFER // PAGE
    space = with_pages(store, (0, 2 * large + 7), (5000, 3))
    assert space.left == (2 * large + 10) * PAGE
    fill(space)
    assert kernel.contents(0, 2 * large + 7) == pages(0, 2 * large + 7)
    assert kernel.contents(5000, 3) == pages(5000, 3)
    assert len(kernel.there) == 2 * large + 10
    assert in_store(store) == set() and space.left == 0
    assert kernel.placed == [BUFFER, BUFFER, 7 * PAGE, 3 * PAGE]
    space.fill(buffer)


def test_nothing_that_is_there_is_written_over(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 1000))
    kernel.there = {number: page(number, 1) for number in range(0, 1000, 3)}
    fill(space)
    expected = b"".join(page(number, number % 3 == 0) for number in range(1000))
    assert kernel.contents(0, 1000) == expected
    assert in_store(store) == set()


def test_pages_that_are_there_are_passed_by_without_reading_them_anew(
    kernel: Kernel, store: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = with_pages(store, (0, BUFFER // PAGE))
    kernel.there = {number: ZEROS for number in range(BUFFER // PAGE)}
    calls = []
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *all: calls.append(all[2]) or read(*all))
    fill(space)
    assert len(calls) == 1


def test_mappings_that_end_in_the_middle(kernel: Kernel, store: int) -> None:
    kernel.mappings = [range(0, 7), range(7, 8), range(8, 300), range(301, 400), range(777, 1000)]
    space = with_pages(store, (0, 1000))
    fill(space)
    expected = {number for one in kernel.mappings for number in one}
    assert kernel.there == {number: page(number) for number in expected}
    assert in_store(store) == set()


def test_what_was_placed_before_the_mappings_changed_is_not_lost(
    kernel: Kernel, store: int
) -> None:
    space = with_pages(store, (0, 100))
    kernel.there[50] = page(50, 1)
    space._place(0, 10 * PAGE, buffer.address)  # 0 .. 9 are there now, whatever they have
    kernel.tried = 0
    kernel.fails.extend([Busy()])
    with pytest.raises(Busy):
        space.fill(buffer)
    assert space.left == 100 * PAGE and in_store(store) == set(range(100))

    place = kernel._place

    def busy_at_60(address: int, data: bytes) -> int:
        if address >= 51 * PAGE:
            raise Busy
        return place(address, data)

    kernel._place = busy_at_60  # type: ignore[method-assign]
    with pytest.raises(Busy):
        space.fill(buffer)
    assert space.left == 49 * PAGE and in_store(store) == set(range(51, 100))
    kernel._place = place  # type: ignore[method-assign]
    fill(space)
    assert kernel.contents(10, 40) == pages(10, 40)
    assert kernel.contents(50, 50) == page(50, 1) + pages(51, 49)


def test_gone_while_it_is_filled(kernel: Kernel, store: int) -> None:
    kernel.fails.append(Gone())
    with pytest.raises(Gone):
        with_pages(store, (0, 5)).fill(buffer)


def test_another_goes_on_with_what_is_left(kernel: Kernel, store: int) -> None:
    large = BUFFER // PAGE
    space = with_pages(store, (0, 3 * large))
    space.fill(buffer)
    kernel.say(REMOVE, large, large + 10)
    kernel.say(REMAP, 2 * large, 9000, 5)
    kernel.fault(2 * large + 100)
    hear(space)
    another = Space(1, 1, FD, store, os.memfd_create("missing"))
    assert another.left == space.left == (2 * large - 10) * PAGE
    fill(another)
    assert kernel.contents(0, large) == pages(0, large)
    assert kernel.contents(large + 10, large - 10) == pages(large + 10, large - 10)
    assert kernel.contents(9000, 5) == pages(2 * large, 5)
    assert kernel.contents(2 * large + 5, large - 5) == pages(2 * large + 5, large - 5)


# --- what the process does


@pytest.mark.parametrize("kind", [REMOVE, UNMAP])
@pytest.mark.parametrize(("start", "end", "left"), [
    (0, 100, set()),
    (12, 14, {10, 11, 14, 20, 21, 22}),
    (14, 21, {10, 11, 12, 13, 21, 22}),
    (15, 20, {10, 11, 12, 13, 14, 20, 21, 22}),
    (10, 15, {20, 21, 22}),
    (0, 11, {11, 12, 13, 14, 20, 21, 22}),
    (22, 1000, {10, 11, 12, 13, 14, 20, 21}),
])  # fmt: skip
def test_what_is_given_up(
    kernel: Kernel, store: int, kind: int, start: int, end: int, left: set[int]
) -> None:
    space = with_pages(store, (10, 5), (20, 3))
    kernel.say(kind, start, end)
    hear(space)
    assert space.left == len(left) * PAGE and in_store(store) == left
    fill(space)
    assert kernel.there == {number: page(number) for number in left}


@pytest.mark.parametrize(("old", "new", "count"), [
    (10, 100, 5), (9, 100, 20), (12, 30, 2), (20, 0, 20), (0, 5, 4), (15, 100, 5), (10, 20, 5),
    (20, 10, 3), (10, 18, 5),
])  # fmt: skip
def test_what_is_moved(kernel: Kernel, store: int, old: int, new: int, count: int) -> None:
    space = with_pages(store, (10, 5), (20, 3))
    model = {number: page(number) for number in (*range(10, 15), *range(20, 23))}
    moved = {
        number + new - old: model.pop(number) for number in range(old, old + count)
        if number in model
    }  # fmt: skip
    for number in range(new, new + count):
        model.pop(number, None)
    model.update(moved)
    kernel.say(REMAP, old, new, count)
    hear(space)
    assert in_store(store) == model.keys() and space.left == len(model) * PAGE
    kernel.fault(max(model))
    hear(space)
    fill(space)
    assert kernel.there == model


def test_more_than_the_buffer_is_moved(kernel: Kernel, store: int) -> None:
    count = 2 * BUFFER // PAGE + 3
    space = with_pages(store, (0, count))
    kernel.say(REMAP, 0, 100_000, count)
    hear(space)
    fill(space)
    assert kernel.contents(100_000, count) == pages(0, count)
    assert len(kernel.there) == count


def test_a_child_has_what_was_left_then(kernel: Kernel, store: int) -> None:
    large = BUFFER // PAGE
    space = with_pages(store, (0, large + 10), (5000, 3))
    space.fill(buffer)
    kernel.said.append(Event(FORK, FD, 0, 0))
    kernel.say(REMOVE, large, large + 5)
    (child,) = hear(space)
    assert (child.pid, child.fd) == (0, FD), "nobody has told whose it is"
    assert child.store != store
    assert child.left == 13 * PAGE and space.left == 8 * PAGE
    assert in_store(child.store) == {*range(large, large + 10), 5000, 5001, 5002}
    kernel.there.clear()
    fill(child)
    assert kernel.contents(large, 10) == pages(large, 10)
    assert in_store(store) == {*range(large + 5, large + 10), 5000, 5001, 5002}
    os.close(child.store)


def test_a_child_is_heard_of_though_its_parent_has_gone(kernel: Kernel, store: int) -> None:
    space = with_pages(store, (0, 5))
    kernel.fault(0)
    kernel.said.append(Event(FORK, FD, 0, 0))
    kernel.fails.append(Gone())
    (child,) = space.hear(buffer)
    with pytest.raises(Gone):
        space.serve(buffer)
    assert child.left == 5 * PAGE
    os.close(child.store)


# --- whatever it does, in whatever order

SIZE = 60
numbers = st.integers(0, SIZE)
steps = st.one_of(
    st.tuples(st.just("fault"), numbers),
    st.tuples(st.just("write"), numbers),
    st.tuples(st.just("fill")),
    st.tuples(st.just("busy")),
    st.tuples(st.just("killed")),
    st.tuples(st.just("remove"), numbers, numbers),
    st.tuples(st.just("move"), numbers, numbers, st.integers(1, 20)),
)


@given(st.sets(numbers), st.lists(steps, max_size=25))
def test_any_steps(first: set[int], taken: list[tuple[str, *tuple[int, ...]]]) -> None:
    """In the end each page has what the process would see without any pager."""
    kernel, store = Kernel(), os.memfd_create("test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "userfault", kernel)
        patch.setattr(module, "CLUSTER", 4 * PAGE)
        space = with_pages(store, *((one, 1) for one in first))
        model = {number: page(number) for number in first}  # what is not in it is zeros
        there = kernel.there
        for what, *given_numbers in taken:
            match what, given_numbers:
                case "fault", [number]:
                    if number not in there:
                        kernel.fault(number)
                case "write", [number]:
                    if number not in there:
                        kernel.fault(number)
                        hear(space)
                        while space.waiting:
                            space.serve(buffer)
                    model[number] = there[number] = page(number, 1)
                case "fill", _:
                    try:
                        space.fill(buffer)
                    except Busy:
                        pass
                case "busy", _:
                    kernel.fails.append(Busy())
                case "killed", _:
                    if not space.waiting:  # those who wait try again; here nobody does
                        space = Space(1, 1, FD, store, os.memfd_create("missing"))
                case "remove", [start, end] if start < end:
                    kernel.say(REMOVE, start, end)
                    hear(space)
                    for number in range(start, end):
                        there.pop(number, None)
                        model.pop(number, None)
                case "move", [old, new, count] if abs(old - new) >= count:
                    olds = range(old, old + count)
                    pages_there = {one: there.pop(one) for one in olds if one in there}
                    contents = {one: model.pop(one) for one in olds if one in model}
                    for number in range(new, new + count):
                        there.pop(number, None)
                        model.pop(number, None)
                    there.update((one + new - old, page) for one, page in pages_there.items())
                    model.update((one + new - old, page) for one, page in contents.items())
                    kernel.say(REMAP, old, new, count)
                    hear(space)
            hear(space)
        kernel.fails.clear()
        space.serve(buffer)
        assert not space.waiting
        fill(space)
    os.close(store)
    assert all(there.get(number) == content for number, content in model.items())
    assert all(content == ZEROS for number, content in there.items() if number not in model)
