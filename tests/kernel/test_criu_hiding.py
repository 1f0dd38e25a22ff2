"""A program asks the kernel for the pages of its mappings, and is told what CRIU would be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.criu import messages
from agent.criu.hiding import LEAST, Hiding, NotLazy, hideable
from agent.freeze import thread_states
from agent.kernel.seccomp import Filter
from tests.support.memory import PAGE, Subject, address, subject, until
from tests.unit.test_criu_images import MM, image

# It maps SIZE bytes twice, one right after the other, and has written to some pages of both.
_ASKS = """
import ctypes, fcntl, json, mmap, os, struct, sys
size = int(sys.argv[1])
maps = [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
for one in maps:
    one[0] = one[4096 * 7] = 1
starts = [ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in maps]
pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
print(json.dumps(starts), flush=True)
regions = (ctypes.c_uint64 * 300)()
for line in sys.stdin:
    start, end, any_of = json.loads(line)
    argument = bytearray(struct.pack(
        "=12Q", 96, 0, start, end, 0, ctypes.addressof(regions), 100, 0, 0, 0, any_of, any_of
    ))
    found = fcntl.ioctl(pagemap, 0xC0606610, argument)
    rows = [(regions[3 * at], regions[3 * at + 1]) for at in range(found)]
    print(json.dumps([rows, struct.unpack("=12Q", argument)[4]]), flush=True)
"""
_THERE, _PRESENT = 0x18, 0x08


class Asker:
    """The program, and who answers it."""

    def __init__(self, size: int) -> None:
        asked = Filter(scans=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ASKS, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=asked.install,
        )
        listener = asked.listener()
        assert listener is not None
        self.hiding = Hiding(listener)
        self.starts: list[int] = self._line()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _line(self) -> list[int]:
        assert self.process.stdout is not None
        return list(json.loads(self.process.stdout.readline()))

    def ask(self, start: int, end: int, any_of: int = _THERE) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps([start, end, any_of])}\n")
        self.process.stdin.flush()

    def told(self, start: int, end: int, any_of: int = _THERE) -> tuple[list[int], int]:
        """Offsets of the pages that it is told of, and how far the kernel went."""
        self.ask(start, end, any_of)
        rows, walked = self._line()
        pages = [page - start for first, last in rows for page in range(first, last, PAGE)]  # type: ignore[attr-defined]
        return pages, walked


@pytest.fixture
def asker() -> Iterator[Asker]:
    asker = Asker(LEAST)
    with asker.process:
        yield asker
        asker.process.kill()
    asker.hiding.close()
    asker.hiding.close()  # once more: nothing


def test_only_what_is_hidden_is(asker: Asker) -> None:
    first, second = asker.starts
    asker.hiding.hide({asker.pid: {(first, first + LEAST): []}, 1: {(second, second + LEAST): []}})
    assert asker.told(first, first + LEAST) == ([], first + LEAST)
    assert asker.told(second, second + LEAST) == ([0, 7 * PAGE], second + LEAST)
    assert asker.told(first, first + LEAST, _PRESENT) == ([0, 7 * PAGE], first + LEAST)
    assert asker.told(first, first + LEAST - PAGE)[0] == [0, 7 * PAGE]  # it is none of ours


def test_the_pages_of_stacks_are_told_of(asker: Asker) -> None:
    first, _ = asker.starts
    asker.hiding.hide({asker.pid: {(first, first + LEAST): [first + PAGE, first + 9 * PAGE]}})
    assert asker.told(first, first + LEAST) == ([PAGE, 9 * PAGE], first + LEAST)


def test_it_waits_until_it_is_known_what_is_hidden(asker: Asker) -> None:
    first, second = asker.starts
    assert asker.told(second, second + PAGE)[0] == [0]  # small: that is known
    asker.ask(first, first + LEAST)
    asker.hiding.hide({asker.pid: {(first, first + LEAST): []}})
    assert asker._line() == [[], first + LEAST]


def test_it_is_killed_while_it_waits(asker: Asker) -> None:
    asker.ask(asker.starts[0], asker.starts[0] + LEAST)
    asker.process.send_signal(signal.SIGKILL)
    asker.process.wait()
    asker.hiding.close()  # the thread ends


def test_it_goes_on_by_itself_when_nobody_answers(asker: Asker) -> None:
    """As where an agent has died: an error (ENOSYS), not for ever."""
    asker.hiding.close()
    asker.ask(asker.starts[0], asker.starts[0] + LEAST)
    assert asker.process.wait(20) == 1


def _image(path: Path, *mappings: tuple[int, int, int, int]) -> None:
    entry = messages.Mm()
    for start, end, flags, status in mappings:
        entry.vmas.add(start=start, end=end, flags=flags, status=status)
    path.write_bytes(image(MM, entry.SerializeToString()))


@pytest.mark.parametrize(("flags", "status", "lazy"), [
    (0x22, 1, True), (0x4022, 1, True), (0x2022, 1, False), (0x40022, 1, False), (0x21, 1, False),
    (0x02, 1, False), (0x22, 1 << 3, False), (0x22, 1 << 12, False),
])  # fmt: skip
def test_criu_must_have_taken_it_for_lazy(
    asker: Asker, tmp_path: Path, flags: int, status: int, lazy: bool
) -> None:
    first, second = asker.starts
    asker.hiding.hide({asker.pid: {(first, first + LEAST): [], (second, second + LEAST): []}})
    asker.told(first, first + LEAST)
    other = (second, second + LEAST, 0x2022, 1)  # nothing was said of that one
    _image(tmp_path / f"mm-{asker.pid}.img", (first, first + LEAST, flags, status), other)
    with contextlib.nullcontext() if lazy else pytest.raises(NotLazy, match=str(asker.pid)):
        asker.hiding.check(tmp_path)


@pytest.fixture
def process() -> Iterator[Subject]:
    with subject() as process:
        yield process


def stop(pid: int) -> None:
    """All of its threads, as a freeze does."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: set(thread_states(pid).values()) == {"T"}, "it stands still")


def test_large_mappings_can_be_hidden(process: Subject) -> None:
    pages = LEAST // PAGE
    process.map(0, pages)
    process.map(2 * pages, pages - 1)
    stop(process.pid)
    found = hideable(process.pid)
    assert (address(0), address(pages)) in found
    assert all(end - start >= LEAST for start, end in found)
    assert not any(kept for kept in found.values())


def test_what_may_not_be_paged_out_cannot(process: Subject) -> None:
    process.map(0, LEAST // PAGE)
    process.do("mlock", address(50), PAGE)
    stop(process.pid)
    assert hideable(process.pid) == {}


def test_where_a_thread_has_its_stack() -> None:
    code = (
        "import threading, time; threading.stack_size(64 << 20);"
        "threading.Thread(target=lambda: (print(flush=True), time.sleep(1000))).start()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stop(process.pid)
        try:
            found = {end - start: kept for (start, end), kept in hideable(process.pid).items()}
            ((_, kept),) = [one for one in found.items() if one[0] >> 20 == 64]
            assert len(kept) == 1 and kept[0] % PAGE == 0
        finally:
            process.kill()
