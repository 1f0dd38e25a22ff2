"""What is found to have changed in the memory of a real process, between one look and the next."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from agent.memory import layout
from agent.memory.direct import written_by_devices
from agent.memory.pagemaps import LATER
from agent.memory.reader import SPAN, MemoryReader
from tests.support.memory import (
    BASE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_PAGEOUT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    Subject,
    address,
    page,
    pages,
    subject,
)

AREA = 16 * SPAN // PAGE  # pages in which the tests map something
ZEROS = bytes(PAGE)


@pytest.fixture
def process() -> Iterator[Subject]:
    with subject() as process:
        yield process


class Copy:
    """What a destination has of the area, kept as it is told."""

    def __init__(self, pid: int, tracked: bool) -> None:
        """`tracked`: the kernel tells what was written to; else all of it is compared."""
        self.tracked = tracked
        pidfd = os.pidfd_open(pid) if tracked else None
        self.reader = MemoryReader(pid, pidfd)
        if pidfd is not None:
            os.close(pidfd)
        if tracked and not self.reader.tracked:
            pytest.skip("the kernel does not tell what is written to (Linux 6.7, x86-64)")
        self.pages: dict[int, bytes] = {}

    def look(self, *, last: bool = False) -> dict[int, bytes]:
        """Take in what has changed: its pages, by number; zeros where it was told of zeros."""
        found: dict[int, bytes] = {}
        for changes in self.reader.changes(last=last):
            data = b"".join(changes.data)
            assert len(data) == changes.size
            for start, count, has_data in changes.runs:
                for number in range((start - BASE) // PAGE, (start - BASE) // PAGE + count):
                    content = data[:PAGE] if has_data else ZEROS
                    data = data[PAGE:] if has_data else data
                    if 0 <= number < AREA:
                        assert number not in found, "a page was sent twice"
                        assert not has_data or content != ZEROS, "zeros were sent"
                        found[number] = content
            assert not data
        self.pages.update(found)
        return found

    def finds(self, *expected: dict[int, bytes], also: Iterable[int] = ()) -> None:
        """Nothing but this; where the kernel tells of writes, also pages that were written to and
        are as they were."""
        found = self.look()
        if self.tracked:
            for number in set(also) & found.keys():
                found.pop(number)
        assert found == {number: one for some in expected for number, one in some.items()}

    def has(self, first: int, data: bytes) -> None:
        for number in range(len(data) // PAGE):
            expected = data[number * PAGE : (number + 1) * PAGE]
            assert self.pages.get(first + number, ZEROS) == expected, first + number


Look = Callable[[Subject], Copy]


@pytest.fixture(params=[False, True], ids=["compared", "tracked"])
def copied(request: pytest.FixtureRequest) -> Iterator[Look]:
    """A copy of a process, in either way of finding what has changed."""
    made: list[Copy] = []

    def copy(process: Subject) -> Copy:
        made.append(Copy(process.pid, request.param))
        return made[-1]

    yield copy
    for one in made:
        one.reader.close()


def numbered(first: int, count: int, seed: int = 0) -> dict[int, bytes]:
    return {number: page(number, seed) for number in range(first, first + count)}


def test_only_what_was_changed_is_found(process: Subject, copied: Look) -> None:
    process.map(0, 2000)
    process.write(0, pages(0, 1000))
    copy = copied(process)
    copy.finds(numbered(0, 1000))
    copy.finds()
    changed = {number: page(number, 1) for number in (0, 511, 512, 999, 1500)}
    for number in changed:
        process.write(number, page(number, 1))
    process.write(700, page(700))  # as it was
    copy.finds(changed, also=[700])
    copy.finds()


def test_many_changes_with_a_page_between_each(process: Subject, copied: Look) -> None:
    """The kernel walks over more of them than it takes note of at once."""
    process.map(0, 4000)
    process.write(0, pages(0, 4000))
    copy = copied(process)
    copy.finds(numbered(0, 4000))
    changed = {number: page(number, 1) for number in range(0, 4000, 2)}
    for number, data in changed.items():
        process.write(number, data)
    assert copy.look(last=True) == changed


@pytest.mark.parametrize("step", [2, 7, 300])
def test_what_is_left_of_a_mapping(process: Subject, copied: Look, step: int) -> None:
    """All that is there, and what was written to since it was looked at, whatever the pieces."""
    process.map(0, 4000)
    process.write(0, pages(0, 3000))
    process.advise(100, 50, MADV_DONTNEED)
    copy = copied(process)
    copy.look()
    for number in range(200, 3000, step):
        process.write(number, page(number, 1))
    process.map(5000, 100)  # not there before
    process.write(5000, pages(5000, 50))
    there = {*range(100), *range(150, 3000), *range(5000, 5050)}
    later = {*range(200, 3000, step), *range(5000, 5050)} if copy.tracked else there
    found: dict[int, int] = {}
    for first, last in ((0, 4000), (5000, 5100)):
        for start, kinds in copy.reader.left(address(first), address(last)):
            number = (start - BASE) // PAGE
            found.update((number + at, kind) for at, kind in enumerate(kinds) if kind)
    assert found.keys() == there
    assert later <= {number for number, kind in found.items() if kind == LATER}
    if step > 16:
        assert all(number in later for number, kind in found.items() if kind == LATER)


def test_what_has_moved_is_left_whole(process: Subject, copied: Look) -> None:
    process.map(0, 100)
    process.write(0, pages(0, 100))
    copy = copied(process)
    copy.look()
    process.do(
        "mremap", address(0), 100 * PAGE, 100 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, address(500)
    )
    ((start, kinds),) = copy.reader.left(address(500), address(600))
    assert start == address(500) and kinds == bytes([LATER]) * 100


def test_a_change_of_one_byte(process: Subject, copied: Look) -> None:
    process.map(0, 4)
    process.write(0, pages(0, 4))
    copy = copied(process)
    copy.look()
    process.do("write", address(2) + PAGE - 1, b"!")
    copy.finds({2: page(2)[:-1] + b"!"})


def test_the_last_look_tells_of_all_that_was_written(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    process.write(2, page(2, 1))
    process.map(600, 10)  # not there before
    process.write(605, page(605))
    assert copy.look(last=True) == {2: page(2, 1), 605: page(605)}


def test_pages_of_zeros_have_no_data(process: Subject, copied: Look) -> None:
    process.map(0, 30)
    process.write(0, bytes(10 * PAGE))  # written, and zeros
    process.read(10, 10)  # the kernel's own page of zeros
    copy = copied(process)
    copy.finds(also=range(20))
    copy.has(0, bytes(30 * PAGE))


def test_what_has_become_zeros_is_told_without_data(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    process.write(3, bytes(2 * PAGE))
    copy.finds({3: ZEROS, 4: ZEROS})
    copy.finds()
    process.write(4, page(4))
    copy.finds({4: page(4)})


def test_runs_of_data_and_zeros_beside_each_other(process: Subject, copied: Look) -> None:
    process.map(0, 8)
    process.write(0, pages(0, 8))
    copy = copied(process)
    copy.look()
    for number in range(8):
        process.write(number, ZEROS if number in (1, 2, 5) else page(number, 1))
    copy.look()
    copy.has(0, b"".join(ZEROS if one in (1, 2, 5) else page(one, 1) for one in range(8)))


def test_what_was_given_up_is_not_there(process: Subject, copied: Look) -> None:
    """Nothing tells of it: CRIU's list of pages does, in the end."""
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    process.advise(0, 5, MADV_DONTNEED)
    process.do("munmap", address(8), 2 * PAGE)
    copy.finds()
    process.read(0, 1)  # there again, and zeros
    process.write(1, page(1))  # and one that is as it was
    copy.finds({0: ZEROS}, also=[1])


def test_another_mapping_at_the_same_place(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    process.do("munmap", address(0), 10 * PAGE)
    process.map(0, 5)
    process.write(0, pages(0, 3, 1))
    process.write(3, page(3))
    copy.finds(numbered(0, 3, 1), also=[3])


def test_another_mapping_in_place_of_the_end_of_one(process: Subject, copied: Look) -> None:
    """What was written in the beginning is found, too."""
    process.map(0, 1000)
    process.write(0, pages(0, 1000))
    copy = copied(process)
    copy.look()
    looking = copy.reader.changes()
    mappings = layout.anonymous(process.pid)
    process.write(5, page(5, 1))
    process.do("munmap", address(900), 100 * PAGE)
    process.map(900, 100)
    process.write(950, page(950, 1))
    with pytest.MonkeyPatch.context() as patch:  # seen before all that
        patch.setattr("agent.memory.reader.anonymous", lambda pid: mappings)
        patch.setattr(copy.reader, "changes", lambda last: looking)
        found = copy.look()
    assert found.items() >= {5: page(5, 1), 950: page(950, 1)}.items()
    copy.has(0, pages(0, 5) + page(5, 1) + pages(6, 894))


def test_what_was_moved_is_found_where_it_is(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    process.do("mremap", address(0), 10 * PAGE, 10 * PAGE, flags, address(600))
    copy.finds({600 + number: page(number) for number in range(10)})


def test_a_mapping_that_grows(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    process.do("mremap", address(0), 10 * PAGE, 20 * PAGE, 0, 0)
    process.write(15, page(15))
    process.map(20, 10)
    process.write(25, page(25))
    copy.finds({15: page(15), 25: page(25)}, also=range(10))
    copy.finds()


def test_what_may_not_be_read_or_written_there_is(process: Subject, copied: Look) -> None:
    """It may be again, later: so a library locks its secrets away."""
    process.map(0, 10)
    process.write(0, pages(0, 10))
    process.do("mprotect", address(0), 3 * PAGE, PROT_NONE)
    process.do("mprotect", address(5), 2 * PAGE, PROT_READ)
    copy = copied(process)
    copy.look()
    copy.has(0, pages(0, 10))
    process.write(8, page(8, 1))
    process.do("mprotect", address(8), PAGE, PROT_NONE)
    copy.look(last=True)
    copy.has(0, pages(0, 8) + page(8, 1) + page(9))


def test_many_that_may_not_be_read(process: Subject, copied: Look) -> None:
    """As many ranges as are read at once, and more."""
    count = 5000
    process.map(0, count)
    for number in range(0, count, 2):
        process.write(number, page(number))
    for number in range(0, count, 50):
        process.do("mprotect", address(number), PAGE, PROT_NONE)
    copy = copied(process)
    copy.look()
    copy.has(0, b"".join(page(one) if one % 2 == 0 else ZEROS for one in range(count)))


def test_a_guard_page_does_not_hide_what_is_beside_it(
    process: Subject, copied: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MADV_GUARD_INSTALL (Linux 6.13), which C libraries use for the stacks of threads."""
    process.map(0, 20)
    process.write(0, pages(0, 20))
    try:
        process.advise(0, 1, MADV_GUARD_INSTALL)
        process.advise(5, 3, MADV_GUARD_INSTALL)
    except OSError as error:
        pytest.skip(f"no guard pages: {error}")
    expected = {one: page(one) for one in range(20) if one not in (0, 5, 6, 7)}
    copied(process).finds(expected)
    monkeypatch.setattr(layout, "_THERE", layout.re.compile(rb"[\x40-\xff]+"))  # before 6.15
    process.write(1, page(1))
    copy = Copy(process.pid, tracked=False)
    copy.finds(expected)
    copy.finds()


def test_pages_that_are_paged_out(process: Subject, copied: Look) -> None:
    """Where there is swap; where there is none nothing comes of it."""
    process.map(0, 100)
    process.write(0, pages(0, 100))
    copy = copied(process)
    process.advise(0, 50, MADV_PAGEOUT)
    copy.finds(numbered(0, 100))
    process.advise(0, 100, MADV_PAGEOUT)
    copy.finds()
    process.write(7, page(7, 1))
    process.advise(0, 100, MADV_PAGEOUT)
    copy.finds({7: page(7, 1)})


def test_another_program_in_the_same_process(process: Subject, copied: Look) -> None:
    """After execve(2) what was open before would show the memory of before."""
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copy = copied(process)
    copy.look()
    after = process.execute()
    assert after.pid == process.pid
    after.map(0, 10)
    after.write(0, pages(0, 2))  # as it was before
    after.write(2, pages(2, 3, 1))
    copy.finds(numbered(2, 3, 1), also=[0, 1])


def test_a_child_has_a_reader_of_its_own(process: Subject, copied: Look) -> None:
    """That its parent's writes are tracked is not so of its own."""
    process.map(0, 10)
    process.write(0, pages(0, 10))
    copied(process).look()
    child = process.fork()
    child.write(3, page(3, 1))
    copy = copied(child)
    copy.finds({**numbered(0, 10), 3: page(3, 1)})
    child.write(4, page(4, 1))
    process.write(5, page(5, 1))
    copy.finds({4: page(4, 1)})


@pytest.mark.parametrize("how", ["direct", "background"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_where_devices_may_write_nobody_relies_on_the_page_tables(
    process: Subject, tmp_path: Path, how: str, when: str
) -> None:
    def begin() -> None:
        if how == "direct":
            process.do("open", str(tmp_path / "file"), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        else:
            process.do("background_io")

    process.map(0, 100)
    process.write(0, pages(0, 100))
    if when == "before":
        begin()
    pidfd = os.pidfd_open(process.pid)
    copy = Copy(process.pid, False)
    copy.reader.close()
    copy.reader = MemoryReader(process.pid, pidfd)
    os.close(pidfd)
    assert copy.reader.tracked == (when == "meanwhile")
    if when == "meanwhile":
        begin()
    copy.look()
    assert not copy.reader.tracked
    process.write(50, page(50, 1))
    copy.look()
    copy.has(0, pages(0, 50) + page(50, 1) + pages(51, 49))
    copy.finds()
    copy.reader.close()


def test_a_path_of_a_pipe_is_no_direct_io() -> None:
    """O_DIRECT of a pipe keeps its packets apart."""
    ends = os.pipe2(os.O_DIRECT)
    try:
        assert not written_by_devices(os.getpid())
    finally:
        for end in ends:
            os.close(end)


def test_a_process_that_has_ended(process: Subject, copied: Look) -> None:
    process.map(0, 10)
    process.write(0, pages(0, 10))
    child = process.fork()
    copy = copied(child)
    copy.finds(numbered(0, 10))
    child.end()
    try:
        assert copy.look() == {}  # a zombie
    except ProcessLookupError:
        pass
    process.do("reap", child.pid)
    with pytest.raises((ProcessLookupError, FileNotFoundError)):
        copy.look()


def test_it_may_end_in_the_middle_of_a_look(process: Subject, copied: Look) -> None:
    process.map(0, AREA)
    process.write(0, pages(0, AREA))
    looking = copied(process).reader.changes()
    next(looking)
    process.end()
    with contextlib.suppress(ProcessLookupError):
        for changes in looking:
            assert changes.runs == []


def test_it_may_unmap_in_the_middle_of_a_look(process: Subject, copied: Look) -> None:
    process.map(0, AREA)
    process.write(0, pages(0, AREA))
    looking = copied(process).reader.changes()
    for changes in looking:
        if any(BASE <= start < address(AREA) for start, _, _ in changes.runs):
            break
    process.do("munmap", address(0), AREA * PAGE)
    after = [start for changes in looking for start, _, _ in changes.runs]
    assert after and not any(BASE <= start < address(AREA) for start in after)


def test_no_descriptor_stays_open(process: Subject, copied: Look) -> None:
    before = os.listdir("/proc/self/fd")
    theirs = os.listdir(f"/proc/{process.pid}/fd")
    copy = copied(process)
    copy.look()
    process.map(0, 10)
    process.write(0, pages(0, 10))
    looking = copy.reader.changes()
    next(looking)
    del looking
    copy.reader.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert os.listdir(f"/proc/{process.pid}/fd") == theirs


@pytest.mark.parametrize("seed", range(3))
def test_any_changes(process: Subject, copied: Look, seed: int) -> None:
    """In the end the copy has every page that is there as it is."""
    chosen = random.Random(seed)
    size = 1500
    process.map(0, size)
    model = {number: b"" for number in range(size)}  # "" where no page is
    copy = copied(process)
    for step in range(5):
        for _ in range(20):
            first = chosen.randrange(size)
            count = min(chosen.choice([1, 3, 100]), size - first)
            match chosen.randrange(5):
                case 0 | 1:
                    content = [page(chosen.randrange(50)) for _ in range(count)]
                    process.write(first, b"".join(content))
                    model.update(zip(range(first, first + count), content, strict=True))
                case 2:
                    process.write(first, bytes(count * PAGE))
                    model.update((number, ZEROS) for number in range(first, first + count))
                case 3:
                    process.advise(first, count, MADV_DONTNEED)
                    model.update((number, b"") for number in range(first, first + count))
                case 4:
                    process.do("munmap", address(first), count * PAGE)
                    process.map(first, count)
                    model.update((number, b"") for number in range(first, first + count))
        sent = copy.look(last=step == 4)
        for number, one in model.items():
            if one:
                assert copy.pages.get(number, ZEROS) == one
            else:
                assert number not in sent


_CHURN = """
import ctypes, mmap, os, random, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
FAILED = ctypes.c_void_p(-1).value
failed = 0
def churn():
    global failed
    mappings = {}
    while True:
        number = random.randrange(48)
        if number in mappings and random.random() < 0.5:
            address, pages = mappings[number]
            more = random.randrange(1, 60)
            moved = libc.mremap(address, pages * 4096, more * 4096, 1)
            if moved == FAILED:
                failed += 1
                continue
            mappings[number] = moved, more
        else:
            if number in mappings:
                address, pages = mappings.pop(number)
                libc.munmap(address, pages * 4096)
            pages = random.randrange(1, 60)
            address = libc.mmap(None, pages * 4096, 3, 0x22, -1, 0)
            ctypes.memset(address, number, pages * 4096)
            mappings[number] = address, pages
threading.Thread(target=churn, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    print(failed, flush=True)
"""


def test_a_process_that_changes_its_mappings_is_not_disturbed() -> None:
    """No mapping is cut in two by the tracking of one that was there before."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pidfd = os.pidfd_open(process.pid)
        reader = MemoryReader(process.pid, pidfd)
        assert reader.tracked
        for _ in range(100):
            for _ in reader.changes():
                pass
            assert reader.tracked
        reader.close()
        os.close(pidfd)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"
        process.kill()
