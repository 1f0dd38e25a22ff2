"""Which pages of a restored process are still at the source: a sparse file, eight bytes a page.

At a page's place is where the source has it, plus one; a hole where nothing is missing. It follows
what the process does with its pages, so that whoever has the file knows what to ask for.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

from agent.errors import ProtocolError
from agent.kernel.syscalls import punch_hole
from agent.memory.layout import LARGEST, PAGE, is_run
from agent.memory.ranges import Range

_ENTRY = 8  # bytes
_BLOCK = PAGE // _ENTRY  # pages whose entries a page of the file has
_AT_ONCE = 1 << 17  # bytes read at once


def file_name(pid: int | str) -> str:
    return f"missing-{pid}"


class Missing:
    """One process's. Does not close the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def add(self, start: int, end: int, origin: int) -> None:
        """Pages from `start` to `end` are at the source from `origin` on."""
        entries = array("Q", range(origin + 1, origin + 1 + end - start, PAGE))
        self._write(start, entries)

    def remove(self, start: int, end: int) -> None:
        """They are not missing any more."""
        first, last = start // PAGE, end // PAGE
        low, high = -(-first // _BLOCK) * _BLOCK, last // _BLOCK * _BLOCK
        if low < high:
            punch_hole(self.fd, low * _ENTRY, (high - low) * _ENTRY)
            self._clear(first, low)
            self._clear(high, last)
        else:
            self._clear(first, last)

    def _clear(self, first: int, last: int) -> None:
        """Where something is: a hole stays one."""
        if first < last and any(os.pread(self.fd, (last - first) * _ENTRY, first * _ENTRY)):
            self._write(first * PAGE, array("Q", bytes((last - first) * _ENTRY)))

    def _write(self, start: int, entries: array[int]) -> None:
        data = memoryview(entries).cast("B")
        offset = start // PAGE * _ENTRY
        while data:
            done = os.pwrite(self.fd, data, offset)
            data, offset = data[done:], offset + done

    def ranges(self, start: int = 0, end: int = LARGEST) -> Iterator[tuple[int, int, int]]:
        """Start, end and origin of each run of missing pages, by address."""
        at, end = start // PAGE * _ENTRY, end // PAGE * _ENTRY
        run: list[int] | None = None
        while at < end:
            try:
                at = max(at, os.lseek(self.fd, at, os.SEEK_DATA))
            except OSError:  # ENXIO: there is no more
                break
            data = os.pread(self.fd, min(_AT_ONCE, max(end - at, 0)), at)
            data = data[: len(data) // _ENTRY * _ENTRY]
            if not data:
                break
            address = at // _ENTRY * PAGE
            for entry in array("Q", data):
                if entry:
                    if run and run[1] == address and entry - 1 - run[2] == address - run[0]:
                        run[1] += PAGE
                    else:
                        if run:
                            yield run[0], run[1], run[2]
                        run = [address, address + PAGE, entry - 1]
                address += PAGE
            at += len(data)
        if run:
            yield run[0], run[1], run[2]

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
