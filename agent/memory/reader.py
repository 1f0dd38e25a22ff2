"""Read the private anonymous memory of a process, and find what has changed since the last time.

Where the kernel tells what was written to (`tracker`), that is what has changed. Elsewhere, and
where devices write, too (`direct`), all is read, and a page has changed when its digest is another:
the 64 bits of Python's keyed hash, whose key is random and this process's own. What was never read
counts as zeros, as it does at the destination, so zeros are only sent where there may have been
something else before.
"""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.kernel import inject
from agent.kernel.syscalls import MAX_VECTORS, read_memory
from agent.memory import pagemaps
from agent.memory.direct import written_by_devices
from agent.memory.layout import PAGE, anonymous, present
from agent.memory.ranges import Range
from agent.memory.tracker import Tracker

SPAN = 2 << 20  # bytes read at once, and the unit of digests
_PAGES = SPAN // PAGE
_BATCH = 1 << 20  # bytes of written pages read at once
_BLANK_PAGE = bytes(PAGE)
_BLANK = hash(_BLANK_PAGE)
_ALL_BLANK = array("q", [_BLANK]) * _PAGES
_UNKNOWN = array("q", [~_BLANK]) * _PAGES  # as good as never a digest

assert sys.hash_info.width == 64


@dataclass(slots=True)
class Changes:
    """Pages: runs of [address, pages, whether they have data], and the data."""

    runs: list[list[int]] = field(default_factory=list)
    data: list[memoryview] = field(default_factory=list)
    size: int = 0  # bytes of data

    def add(self, address: int, pages: int, data: memoryview | None) -> None:
        self.runs.append([address, pages, int(data is not None)])
        if data is not None:
            self.data.append(data)
            self.size += len(data)

    def take(self, others: Changes) -> None:
        self.runs += others.runs
        self.data += others.data
        self.size += others.size


class MemoryReader:
    """The memory of one process. Needs ptrace access; the process may run or stand still."""

    def __init__(self, pid: int, pidfd: int | None = None) -> None:
        """`pidfd`: of a process that runs, to have its writes tracked if that can be."""
        self.pid = pid
        self._digests: dict[int, array[int]] = {}
        self._sent: set[int] = set()  # spans of which something was sent without a digest
        self._tracker: Tracker | None = None
        if pidfd is not None:
            with contextlib.suppress(OSError):
                if not written_by_devices(pid):
                    self._tracker = Tracker(pid, pidfd)

    @property
    def tracked(self) -> bool:
        """Whether the kernel tells what is written to."""
        return self._tracker is not None

    def changes(self, *, last: bool = False) -> Iterator[Changes]:
        """What has changed since this was last gone through, piece by piece (also none in one).

        What changes meanwhile may come or not; it does the next time, unless this is the `last`.
        Raises `OSError`.
        """
        if self._tracker is not None and not last:
            self._track_all(self._tracker)
        # Opened each time: what is open stays with the memory from before an execve(2).
        with _opened(self.pid, "mem") as memory, _opened(self.pid, "pagemap") as pagemap:
            for start, end in anonymous(self.pid):
                written = self._written(pagemap, start, end, last)
                if written is not None:
                    yield from self._read_all(memory, written)
                    continue
                for first, until in _spans(present(pagemap, start, end)):
                    yield self._differing(memory, first, until)
        if self._tracker is not None and not last and written_by_devices(self.pid):
            self._stop_tracking()  # what was pinned when it was protected may still change

    def left(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Maps of what there is in a mapping, and of what the destination does not have of it.

        As `agent.memory.pagemaps` has them, of a process that stands still. Raises `OSError`.
        """
        with _opened(self.pid, "pagemap") as pagemap:
            for address, pages in pagemaps.look(pagemap, start, end, tracked=self.tracked):
                yield address, pagemaps.near(pages)

    def read(self, ranges: list[Range]) -> Changes:
        """What is there. Raises `OSError`."""
        with _opened(self.pid, "mem") as memory:
            return read_ranges(self.pid, memory, ranges)

    def _written(self, pagemap: int, start: int, end: int, last: bool) -> list[Range] | None:
        """None where the kernel cannot tell."""
        if self._tracker is None:
            return None
        # A mapping that was not there before, in whole or in part, is an error. What was found up
        # to there is lost then, and protected: all that is there is gone through.
        with contextlib.suppress(OSError):
            return list(self._tracker.written(pagemap, start, end, protect=not last))
        return None

    def _track_all(self, tracker: Tracker) -> None:
        """Have the kernel tell of all mappings that there are now.

        The process stands still meanwhile: part of a mapping that has changed since it was seen
        would be cut off from the rest, and mremap(2) fails across that.
        """
        try:
            with inject.still(self.pid):
                for start, end in anonymous(self.pid):
                    tracker.track(start, end)
        except (ProcessLookupError, FileNotFoundError):
            raise
        except OSError:  # somebody traces it, for instance
            self._stop_tracking()

    def _read_all(self, memory: int, ranges: Iterable[Range]) -> Iterator[Changes]:
        batch: list[Range] = []
        size = 0
        for first, until in _spans(ranges):
            base = first // SPAN * SPAN
            self._sent.add(base)
            self._digests.pop(base, None)
            if size + until - first > _BATCH or len(batch) == MAX_VECTORS:
                yield read_ranges(self.pid, memory, batch)
                batch, size = [], 0
            batch.append((first, until))
            size += until - first
        if batch:
            yield read_ranges(self.pid, memory, batch)

    def _differing(self, memory: int, first: int, until: int) -> Changes:
        found = Changes()
        for start, piece in _readable(memory, first, until):
            self._compare(start, memoryview(piece), found)
        return found

    def _compare(self, first: int, view: memoryview, found: Changes) -> None:
        base = first // SPAN * SPAN
        before = _UNKNOWN if base in self._sent else _ALL_BLANK
        known = self._digests.get(base, before)
        at = (first - base) // PAGE
        fresh = array("q", [hash(view[i : i + PAGE]) for i in range(0, len(view), PAGE)])
        if known[at : at + len(fresh)] == fresh:
            return
        if known is before:
            known = self._digests[base] = before[:]
        page = 0
        while page < len(fresh):
            digest = fresh[page]
            if digest == known[at + page]:
                page += 1
                continue
            begin = page
            blank = digest == _BLANK
            while page < len(fresh) and (digest := fresh[page]) != known[at + page]:
                if (digest == _BLANK) != blank:
                    break
                page += 1
            run = None if blank else view[begin * PAGE : page * PAGE]
            found.add(first + begin * PAGE, page - begin, run)
        known[at : at + len(fresh)] = fresh

    def _stop_tracking(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def close(self) -> None:
        self._stop_tracking()


def read_ranges(pid: int, memory: int, batch: list[Range]) -> Changes:
    """What is there of some ranges; one that the process itself may not read, or that has gone in
    part, is read by itself. `memory`: a descriptor of /proc/PID/mem. Raises `OSError`."""
    found = Changes()
    while batch:
        data = read_memory(pid, batch)
        done = at = 0
        for first, until in batch:
            if at + until - first > len(data):
                break
            _by_content(first, data, at, at + until - first, found)
            at += until - first
            done += 1
        for first, until in batch[done : done + 1]:
            for start, piece in _readable(memory, first, until):
                _by_content(start, piece, 0, len(piece), found)
        batch = batch[done + 1 :]
    return found


@contextlib.contextmanager
def _opened(pid: int, name: str) -> Iterator[int]:
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _readable(memory: int, first: int, until: int) -> Iterator[tuple[int, bytes]]:
    """Start and bytes of the pages that can be read: no guard pages, none that have gone."""
    while first < until:
        data = b""
        with contextlib.suppress(OSError):
            data = os.pread(memory, until - first, first)
        data = data[: len(data) // PAGE * PAGE]
        if data:
            yield first, data
        first += len(data) or PAGE


def _spans(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same, cut where spans end."""
    for first, last in ranges:
        while first < last:
            until = min(last, first // SPAN * SPAN + SPAN)
            yield first, until
            first = until


def _by_content(address: int, data: bytes, start: int, end: int, found: Changes) -> None:
    """Add the pages of a part of `data` to what was found, those of zeros without it."""
    begin, blank = start, data.startswith(_BLANK_PAGE, start)
    for at in range(start + PAGE, end + PAGE, PAGE):
        now = at < end and data.startswith(_BLANK_PAGE, at)
        if at < end and now == blank:
            continue
        run = None if blank else memoryview(data)[begin:at]
        found.add(address + begin - start, (at - begin) // PAGE, run)
        begin, blank = at, now
