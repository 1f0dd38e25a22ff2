"""One restored process whose memory is still outside of it, and the store that has it.

What is in the store is what is left: a page that was placed, or that the process has given up, is
punched out, one that it has moved moves in the store, too. So whoever has the descriptor and the
store can go on where another pager was killed. No waiting here: the pager asks, step by step.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator

from agent.kernel import userfault
from agent.kernel.syscalls import punch_hole
from agent.memory.layout import LARGEST, PAGE

BUFFER = 4 << 20  # bytes placed at once in the background
CLUSTER = 64 << 10  # bytes placed around an address that was touched

Range = tuple[int, int]


class Buffer:
    """Memory of ours that the kernel copies from."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, BUFFER)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))


def extents(store: int) -> Iterator[Range]:
    """Start and end of what a sparse file has."""
    at = 0
    while True:
        try:
            start = os.lseek(store, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no more
            return
        at = os.lseek(store, start, os.SEEK_HOLE)
        yield start, at


def keep_only(store: int, lazy: list[Range]) -> None:
    """Punch out of a store what is in none of the ranges (sorted): the process had given it up."""
    at = 0
    for start, end in [*lazy, (LARGEST, LARGEST)]:
        if start > at:
            punch_hole(store, at, start - at)
        at = max(at, end)


class Space:
    """The address space behind one userfaultfd."""

    def __init__(self, pid: int, fd: int, store: int) -> None:
        """`pid`: 0 where it is not known. `store`: its pages, each at its address; what is not
        there is zeros."""
        self.pid, self.fd, self.store = pid, fd, store
        self._left = [list(one) for one in extents(store)]  # by start
        self._touched: list[int] = []  # addresses that somebody waits for
        self.faults = 0

    @property
    def left(self) -> int:
        """Bytes that were not placed yet, but for those that were touched."""
        return sum(end - start for start, end in self._left)

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a page that could not be placed yet."""
        return bool(self._touched)

    # --- what the process does

    def hear(self, buffer: Buffer) -> list[Space]:
        """Take its events; returns the spaces of children that it has made. To be served, then."""
        born: list[Space] = []
        for event in userfault.events(self.fd):
            match event.kind:
                case userfault.PAGEFAULT:
                    self.faults += 1
                    self._touched.append(event.second // PAGE * PAGE)
                case userfault.FORK:
                    born.append(Space(0, event.first, self._copy(buffer)))
                case userfault.REMAP:
                    self._move(event.first, event.second, event.third, buffer)
                case userfault.REMOVE | userfault.UNMAP:
                    self._cut(event.first, event.second)
                    punch_hole(self.store, event.first, event.second - event.first)
        return born

    def serve(self, buffer: Buffer) -> None:
        """Place what was touched. Raises `Gone`."""
        waiting, self._touched = self._touched, []
        for place, address in enumerate(waiting):
            try:
                self._answer(address, buffer)
            except userfault.Busy:
                self._touched += waiting[place:]
                return

    def _answer(self, address: int, buffer: Buffer) -> None:
        end = self._end_of(address)
        placed = 0
        if end is None:
            with contextlib.suppress(FileNotFoundError):  # its mapping has gone, too
                placed = userfault.zero(self.fd, address, PAGE)
        else:
            length = min(end, (address // CLUSTER + 1) * CLUSTER) - address
            self._read(self.store, buffer, address, length)
            placed = self._place(address, length, buffer.address)
        if not placed:  # it is there already, or its mapping is not
            userfault.wake(self.fd, address, PAGE)

    # --- in the background

    def fill(self, buffer: Buffer) -> None:
        """Place the next piece of what is left. Raises `Busy`, `Gone`."""
        if not self._left:
            return
        piece = self._left[0]
        start = piece[0]
        end = min(piece[1], start + BUFFER)
        self._read(self.store, buffer, start, end - start)
        try:
            while (at := piece[0]) < end:
                placed = self._place(at, end - at, buffer.address + at - start)
                piece[0] += placed or PAGE  # that one was there
        finally:
            if piece[0] > start:
                punch_hole(self.store, start, piece[0] - start)
            if piece[0] >= piece[1]:
                del self._left[0]

    def _place(self, address: int, length: int, source: int) -> int:
        """Bytes placed: not beyond the end of a mapping, nor what is there already."""
        while length:
            try:
                return userfault.copy(self.fd, address, source, length)
            except FileNotFoundError:  # not all of it is one mapping
                length = length // 2 // PAGE * PAGE
        return 0

    @staticmethod
    def _read(store: int, buffer: Buffer, offset: int, length: int) -> memoryview:
        view = buffer.view[:length]
        done = os.preadv(store, [view], offset)
        if done < length:
            view[done:] = bytes(length - done)
        return view

    def _copy(self, buffer: Buffer) -> int:
        """A store of its own for a child."""
        store = os.memfd_create("streamferry-memory", os.MFD_CLOEXEC)
        for start, end in self._left:
            self._transfer(store, start, start, end - start, buffer)
        return store

    def _transfer(self, store: int, old: int, new: int, length: int, buffer: Buffer) -> None:
        for at in range(0, length, BUFFER):
            view = self._read(self.store, buffer, old + at, min(length - at, BUFFER))
            os.pwrite(store, view, new + at)

    # --- ranges

    def _end_of(self, address: int) -> int | None:
        """Where what is left at this address ends; None where nothing is."""
        at = bisect_right(self._left, address, key=lambda one: one[0]) - 1
        return self._left[at][1] if at >= 0 and address < self._left[at][1] else None

    def _cut(self, start: int, end: int) -> list[list[int]]:
        """Take what is between two addresses out; returns it."""
        kept: list[list[int]] = []
        taken: list[list[int]] = []
        for first, last in self._left:
            low, high = max(first, start), min(last, end)
            if low >= high:
                kept.append([first, last])
                continue
            taken.append([low, high])
            kept += [[one, other] for one, other in ((first, low), (high, last)) if one < other]
        self._left = kept
        return taken

    def _move(self, old: int, new: int, length: int, buffer: Buffer) -> None:
        moved = self._cut(old, old + length)
        self._cut(new, new + length)
        punch_hole(self.store, new, length)
        for first, last in moved:
            self._transfer(self.store, first, first + new - old, last - first, buffer)
            self._left.append([first + new - old, last + new - old])
        punch_hole(self.store, old, length)
        self._left.sort()
