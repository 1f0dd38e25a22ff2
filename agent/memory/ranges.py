"""Ranges of addresses that do not touch, by start. No I/O."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]


def split(ranges: Iterable[Range], by: Iterable[Range]) -> tuple[list[Range], list[Range]]:
    """What of the ranges is in none of the others, and what is; all sorted, and none touch."""
    outside: list[Range] = []
    inside: list[Range] = []
    others = iter(by)
    first, last = next(others, (0, 0))
    for start, end in ranges:
        at = start
        while at < end:
            while last and last <= at:
                first, last = next(others, (0, 0))
            if not last or first >= end:
                outside.append((at, end))
                break
            if first > at:
                outside.append((at, first))
                at = first
            inside.append((at, min(last, end)))
            at = min(last, end)
    return outside, inside


class Ranges:
    """A set of addresses, as ranges from a start to before an end."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, end: int) -> None:
        """Take a range in; what is there of it already stays."""
        low = bisect_left(self._ends, start)  # the first that touches it
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self.size += end - start - self._size_of(low, high)
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def cut(self, start: int, end: int) -> list[Range]:
        """Take what is in between out; returns it."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        if low >= high:
            return []
        taken = [
            (max(one, start), min(other, end))
            for one, other in zip(self._starts[low:high], self._ends[low:high], strict=True)
        ]
        first, last = self._starts[low], self._ends[high - 1]
        left = [(first, start)] if first < start else []
        left += [(end, last)] if last > end else []
        self._starts[low:high] = [one for one, _ in left]
        self._ends[low:high] = [other for _, other in left]
        self.size -= sum(other - one for one, other in taken)
        return taken

    def end_at(self, address: int) -> int | None:
        """Where the range that has this address ends; None where none has it."""
        at = bisect_right(self._starts, address) - 1
        return self._ends[at] if at >= 0 and address < self._ends[at] else None

    def first(self, most: int) -> Range | None:
        """The lowest range, no longer than `most`."""
        if not self._starts:
            return None
        return self._starts[0], min(self._ends[0], self._starts[0] + most)

    def _size_of(self, low: int, high: int) -> int:
        return sum(self._ends[low:high]) - sum(self._starts[low:high])
