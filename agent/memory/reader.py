"""Read the private anonymous memory of a process, and find what has changed since the last time.

A page counts as changed when its digest is another: the 64 bits of Python's keyed hash, whose key
is random and this process's own. What was never read counts as zeros, as it does at the
destination, so zeros are only sent where there was something else before.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.memory.layout import PAGE, anonymous, present

SPAN = 2 << 20  # bytes read at once, and the unit of digests
_PAGES = SPAN // PAGE
_ZERO = hash(bytes(PAGE))
_BLANK = array("q", [_ZERO]) * _PAGES

assert sys.hash_info.width == 64


@dataclass(slots=True)
class Changes:
    """Pages of one span: runs of [address, pages, whether they have data], and the data."""

    runs: list[list[int]] = field(default_factory=list)
    data: list[memoryview] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.data))

    def add(self, address: int, pages: int, data: memoryview | None) -> None:
        self.runs.append([address, pages, int(data is not None)])
        if data is not None:
            self.data.append(data)


class MemoryReader:
    """The memory of one process. Needs ptrace access; the process may run or stand still."""

    def __init__(self, pid: int) -> None:
        """Raises `OSError`."""
        self.pid = pid
        self._digests: dict[int, array[int]] = {}
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._memory)
            raise

    def changes(self) -> Iterator[Changes]:
        """What has changed since this was last gone through, a span at a time (also when none).

        What changes meanwhile may come or not; it does the next time. Raises `OSError`.
        """
        for start, end in anonymous(self.pid):
            for first, last in present(self._pagemap, start, end):
                while first < last:
                    until = min(last, first // SPAN * SPAN + SPAN)
                    yield self._changed(first, until)
                    first = until

    def _changed(self, first: int, until: int) -> Changes:
        found = Changes()
        data = self._read(first, until - first)
        view = memoryview(data)
        base = first // SPAN * SPAN
        known = self._digests.get(base, _BLANK)
        at = (first - base) // PAGE
        fresh = array("q", [hash(view[i : i + PAGE]) for i in range(0, len(view), PAGE)])
        if known[at : at + len(fresh)] == fresh:
            return found
        if known is _BLANK:
            known = self._digests[base] = _BLANK[:]
        page = 0
        while page < len(fresh):
            digest = fresh[page]
            if digest == known[at + page]:
                page += 1
                continue
            begin = page
            blank = digest == _ZERO
            while page < len(fresh) and (digest := fresh[page]) != known[at + page]:
                if (digest == _ZERO) != blank:
                    break
                page += 1
            run = None if blank else view[begin * PAGE : page * PAGE]
            found.add(first + begin * PAGE, page - begin, run)
        known[at : at + len(fresh)] = fresh
        return found

    def _read(self, address: int, length: int) -> bytes:
        """What can be read; a mapping that has gone meanwhile reads as short."""
        try:
            data = os.pread(self._memory, length, address)
        except OSError:
            return b""
        return data if len(data) % PAGE == 0 else data[: len(data) // PAGE * PAGE]

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._pagemap)
