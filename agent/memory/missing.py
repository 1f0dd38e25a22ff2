"""Which pages of a restored process are still at the source: a sparse file, one byte a page.

It follows what the process does with its pages, so that whoever has the file knows what to ask for.
A page that the process has moved has beside it, further on in the file, eight bytes that say where
the source has it. What was told of a process when it was frozen is there, too (`there`).
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator

from agent.errors import ProtocolError
from agent.kernel.syscalls import punch_hole, write_at
from agent.memory.layout import LARGEST, PAGE, is_run
from agent.memory.pagemaps import IS_THERE, LATER, is_map, runs, spans
from agent.memory.ranges import Range

_MOVED = 3  # comes later, too, from elsewhere
_KINDS = re.compile(b"%c+|%c+" % (LATER, _MOVED))
_BLOCK = PAGE  # pages whose bytes a page of the file has
_ORIGINS = LARGEST // PAGE  # where the eight bytes of each page begin
_ENTRY = 8  # bytes
_AT_ONCE = 1 << 17  # bytes read at once

Run = tuple[int, int, int]  # start, end, and where the source has it


def file_name(pid: int | str) -> str:
    return f"missing-{pid}"


class Missing:
    """One process's. Does not close the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def add(self, start: int, end: int, origin: int) -> None:
        """Pages from `start` to `end` are at the source from `origin` on."""
        count = (end - start) // PAGE
        if origin == start:
            write_at(self.fd, bytes([LATER]) * count, start // PAGE)
        else:
            entries = array("Q", range(origin, origin + end - start, PAGE))
            write_at(self.fd, memoryview(entries).cast("B"), _ORIGINS + start // PAGE * _ENTRY)
            write_at(self.fd, bytes([_MOVED]) * count, start // PAGE)

    def mark(self, address: int, pages: bytes) -> None:
        """What was told of the pages from an address on, as `agent.memory.pagemaps` has it."""
        write_at(self.fd, pages, address // PAGE)

    def remove(self, start: int, end: int) -> None:
        """They are not missing any more."""
        first, last = start // PAGE, end // PAGE
        low, high = -(-first // _BLOCK) * _BLOCK, last // _BLOCK * _BLOCK
        if low < high:
            punch_hole(self.fd, low, high - low)
            self._clear(first, low)
            self._clear(high, last)
        else:
            self._clear(first, last)

    def _clear(self, first: int, last: int) -> None:
        """Where something is: a hole stays one."""
        if first < last and any(os.pread(self.fd, last - first, first)):
            write_at(self.fd, bytes(last - first), first)

    def ranges(self, start: int = 0, end: int = LARGEST) -> Iterator[Run]:
        """Start, end and origin of each run of missing pages, by address."""
        run: Run | None = None
        for piece in self._pieces(start, end):
            if run and run[1] == piece[0] and piece[2] - run[2] == piece[0] - run[0]:
                run = (run[0], piece[1], run[2])
                continue
            if run:
                yield run
            run = piece
        if run:
            yield run

    def _pieces(self, start: int, end: int) -> Iterator[Run]:
        for address, pages in self._read(start, end):
            if _MOVED not in pages:  # as good as always, and much faster
                for first, last in runs(address, pages):
                    yield first, last, first
                continue
            for match in _KINDS.finditer(pages):
                first, last = (address + at * PAGE for at in match.span())
                if match[0][0] == _MOVED:
                    yield from self._moved(first, last)
                else:
                    yield first, last, first

    def there(self) -> Iterator[Range]:
        """Start and end of what there was of the process, by address, as far as it was told."""
        for address, pages in self._read(0, LARGEST):
            for first, last in spans(pages.translate(IS_THERE)):
                yield address + first * PAGE, address + last * PAGE

    def _read(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Addresses, and the bytes of the pages from there on, where any are."""
        at, until = start // PAGE, end // PAGE
        while at < until:
            try:
                at = max(at, os.lseek(self.fd, at, os.SEEK_DATA))
            except OSError:  # ENXIO: there is no more
                return
            data = os.pread(self.fd, min(_AT_ONCE, max(until - at, 0)), at)
            if not data:
                return
            yield at * PAGE, data
            at += len(data)

    def _moved(self, start: int, end: int) -> Iterator[Run]:
        size = (end - start) // PAGE * _ENTRY
        entries = array("Q", os.pread(self.fd, size, _ORIGINS + start // PAGE * _ENTRY))
        for number, origin in enumerate(entries):
            address = start + number * PAGE
            yield address, address + PAGE, origin

    def copy(self) -> Missing:
        """Another file with the same."""
        other = Missing(os.memfd_create("streamferry-missing", os.MFD_CLOEXEC))
        for start, end, origin in self.ranges():
            other.add(start, end, origin)
        return other

    def move(self, old: int, new: int, length: int) -> None:
        """The process has moved its pages."""
        moved = list(self.ranges(old, old + length))
        self.remove(old, old + length)
        self.remove(new, new + length)
        for start, end, origin in moved:
            self.add(start - old + new, end - old + new, origin)

    def keep_only(self, ranges: Iterable[Range]) -> None:
        """Nothing is missing but in these ranges (sorted)."""
        at = 0
        for start, end in [*ranges, (LARGEST, LARGEST)]:
            if start > at and next(self.ranges(at, start), None) is not None:
                self.remove(at, start)
            at = max(at, end)


def checked_map(address: object, pages: object) -> tuple[int, bytes]:
    """The map of a record. Raises `ProtocolError`."""
    if not isinstance(address, int) or not isinstance(pages, bytes) or not is_map(pages):
        raise ProtocolError(detail="a malformed map of pages")
    if not is_run(address, len(pages)):
        raise ProtocolError(detail="a map of pages that cannot be there")
    return address, pages


def checked_runs(value: object, most: int) -> list[Range]:
    """Start and end of the runs [[address, pages]] of a record. Raises `ProtocolError`."""
    if not isinstance(value, list) or len(value) > most:
        raise ProtocolError(detail="a record with too many runs of pages, or none")
    found = []
    for run in value:
        match run:
            case [int(address), int(pages)] if is_run(address, pages):
                found.append((address, address + pages * PAGE))
            case _:
                raise ProtocolError(detail="a malformed run of pages")
    return found
