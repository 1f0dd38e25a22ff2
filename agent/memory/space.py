"""One restored process whose memory is still outside of it: in a store, or still at the source.

What is in the store is what is left: a page that was placed, or that the process has given up, is
punched out, one that it has moved moves in the store, too. The same goes for the list of what is
`missing`. So whoever has the three descriptors can go on where another pager was killed. No waiting
here: the pager asks, step by step.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator

from agent.kernel import userfault
from agent.kernel.syscalls import punch_hole
from agent.memory.layout import LARGEST, PAGE
from agent.memory.missing import Missing
from agent.memory.ranges import Range, Ranges, split

BUFFER = 4 << 20  # bytes placed at once in the background
CLUSTER = 64 << 10  # bytes placed around an address that was touched


class Buffer:
    """Memory of ours that the kernel copies from."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, BUFFER)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))


def extents(store: int, first: int = 0, last: int = LARGEST) -> Iterator[Range]:
    """Start and end of what a sparse file has, in a part of it. Takes time for what there is."""
    at = first
    while at < last:
        try:
            start = os.lseek(store, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no more
            return
        if start >= last:
            return
        at = min(os.lseek(store, start, os.SEEK_HOLE), last)
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

    def __init__(
        self,
        pid: int,
        origin: int,
        fd: int,
        store: int,
        missing: int,
        here: Iterable[Range] | None = None,
    ) -> None:
        """`pid`: 0 where it is not known; `origin`: of the process at the source that has what is
        `missing`. `store`: its pages, each at its address; what is in neither is zeros. `here`:
        what in all may be in the store (sorted), where that is known without looking."""
        self.pid, self.origin, self.fd, self.store = pid, origin, fd, store
        self._missing = Missing(missing)
        self._awaited = Ranges()
        self._shifts = {0}  # of pages that were moved, against where the source has them
        for start, end, theirs in self._missing.ranges():
            self._awaited.add(start, end)
            self._shifts.add(start - theirs)
        left, stale = split(extents(store) if here is None else here, self._awaited)
        self._left = Ranges(left)
        self._stale = Ranges(stale)  # in the store, of what is missing: not so any more
        self._touched: list[int] = []  # addresses that somebody waits for
        self._asked: set[int] = set()  # of these, those that are missing
        self._wants: list[Range] = []  # where the source has them
        self.faults = 0

    @property
    def fds(self) -> tuple[int, int, int]:
        """The three descriptors."""
        return self.fd, self.store, self._missing.fd

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    @property
    def left(self) -> int:
        """Bytes that are here and were not placed yet, but for those that were touched."""
        return self._left.size

    @property
    def awaited(self) -> int:
        """Bytes that are still at the source."""
        return self._awaited.size

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a page that could not be placed yet."""
        return bool(self._touched)

    def wants(self) -> list[Range]:
        """What somebody has begun to wait for since the last call, as the source's addresses."""
        wants, self._wants = self._wants, []
        return wants

    def want_again(self) -> None:
        """Whoever was asked may not have heard it."""
        self._touched += self._asked
        self._asked.clear()

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
                    born.append(self._child(event.first, buffer))
                case userfault.REMAP:
                    self._move(event.first, event.second, event.third, buffer)
                case userfault.REMOVE | userfault.UNMAP:
                    self._drop(event.first, event.second)
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
        if (end := self._awaited.end_at(address)) is not None:
            if address not in self._asked:
                self._asked.add(address)
                end = min(end, (address // CLUSTER + 1) * CLUSTER)
                start, end, theirs = next(self._missing.ranges(address, end))
                self._wants.append((theirs, theirs + end - start))
            return
        end = self._left.end_at(address)
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
        piece = self._left.first(BUFFER)
        if piece is None:
            return
        first, last = piece
        start, end = next(extents(self.store, first, last), (last, last))
        self._left.cut(first, start)  # zeros: nobody knew
        if start == end:
            return
        self._read(self.store, buffer, start, end - start)
        at = start
        try:
            while at < end:
                placed = self._place(at, end - at, buffer.address + at - start)
                at += placed or PAGE  # that one was there
        finally:
            if at > start:
                punch_hole(self.store, start, at - start)
                self._left.cut(start, at)

    # --- from the source

    def arrive(self, theirs: int, length: int, address: int | None) -> None:
        """Place what has come, and is still missing: the source's pages from `theirs` on, which are
        at `address` of our memory; None: zeros. Raises `Busy` (to be called again), `Gone`."""
        for shift in self._shifts:
            ours = theirs + shift
            if ours < 0:
                continue
            for start, end, origin in list(self._missing.ranges(ours, ours + length)):
                if start - origin == shift:
                    self._settle(start, end, None if address is None else address + start - ours)

    def _settle(self, start: int, end: int, address: int | None) -> None:
        at = start
        try:
            while at < end:
                if address is None:
                    placed = self._place_zeros(at, end - at)
                else:
                    placed = self._place(at, end - at, address + at - start)
                if not placed:  # it is there already, or its mapping is not
                    userfault.wake(self.fd, at, PAGE)
                at += placed or PAGE
        finally:
            if at > start:
                self._missing.remove(start, at)
                self._awaited.cut(start, at)
                if self._stale.cut(start, at):
                    punch_hole(self.store, start, at - start)
                self._asked = {one for one in self._asked if not start <= one < at}

    def _place_zeros(self, address: int, length: int) -> int:
        while length:
            try:
                return userfault.zero(self.fd, address, length)
            except FileNotFoundError:
                length = length // 2 // PAGE * PAGE
        return 0

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

    def _child(self, fd: int, buffer: Buffer) -> Space:
        """That of a child, with a store of its own."""
        store = os.memfd_create("streamferry-memory", os.MFD_CLOEXEC)
        for start, end in self._left:
            self._transfer(store, start, end, 0, buffer)
        return Space(0, self.origin, fd, store, self._missing.copy().fd)

    def _transfer(self, store: int, start: int, end: int, shift: int, buffer: Buffer) -> None:
        """Copy what a part of the store has to a store, that much further on."""
        for first, last in extents(self.store, start, end):
            for at in range(first, last, BUFFER):
                view = self._read(self.store, buffer, at, min(last - at, BUFFER))
                os.pwrite(store, view, at + shift)

    # --- ranges

    def _drop(self, start: int, end: int) -> None:
        """The process has given up what is in between."""
        self._forget(start, end)
        if self._awaited.cut(start, end):
            self._missing.remove(start, end)
        self._let_go(start, end)

    def _move(self, old: int, new: int, length: int, buffer: Buffer) -> None:
        moved = self._left.cut(old, old + length)
        self._forget(new, new + length)
        for first, last in moved:
            self._transfer(self.store, first, last, new - old, buffer)
            self._left.add(first + new - old, last + new - old)
        punch_hole(self.store, old, length)
        self._awaited.cut(new, new + length)
        self._missing.move(old, new, length)
        for first, last in self._awaited.cut(old, old + length):
            self._awaited.add(first + new - old, last + new - old)
        for start, _, theirs in self._missing.ranges(new, new + length):
            self._shifts.add(start - theirs)
        self._let_go(old, old + length)
        self._let_go(new, new + length)

    def _forget(self, start: int, end: int) -> None:
        self._left.cut(start, end)
        punch_hole(self.store, start, end - start)

    def _let_go(self, start: int, end: int) -> None:
        """Whoever waits there has something else to find now."""
        gone = {one for one in self._asked if start <= one < end}
        self._asked -= gone
        self._touched += gone
