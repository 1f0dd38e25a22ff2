"""PAGEMAP_SCAN: which pages of a process are there, or were written to (since Linux 6.7).

Numbers are from include/uapi/linux/fs.h (struct pm_scan_arg, struct page_region).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import struct
from collections.abc import Iterator

SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
ARGUMENT = struct.Struct("=12Q")
REGION = struct.Struct("=3Q")  # start, end, categories
_REGIONS = 4096  # taken at once
_WRITE_PROTECT, _CHECK = 1 << 0, 1 << 1  # PM_SCAN_WP_MATCHING, PM_SCAN_CHECK_WPASYNC
_WRITTEN, THERE = 1 << 1, 1 << 3 | 1 << 4  # PAGE_IS_WRITTEN, _PRESENT and _SWAPPED
_GUARD = 1 << 8  # PAGE_IS_GUARD (Linux 6.15)


def written(pagemap: int, start: int, end: int, *, protect: bool) -> Iterator[tuple[int, int]]:
    """Runs of pages that were written to since they were protected, and are in memory or swapped.

    The range is registered with a userfaultfd that protects from writes asynchronously. `protect`:
    those that are found are protected again, at the same moment. Raises `OSError`; what was
    protected before is not told then.
    """
    regions = ctypes.create_string_buffer(REGION.size * _REGIONS)
    flags = _CHECK | (_WRITE_PROTECT if protect else 0)
    categories = (_WRITTEN, THERE, _WRITTEN | THERE)
    while start < end:
        found, walked = _scan(pagemap, flags, start, end, regions, _REGIONS, categories)
        for first, last, _ in found:
            yield first, last
            start = last
        start = max(start, walked)


def here(
    pagemap: int, start: int, end: int, *, tracked: bool, most: int
) -> list[tuple[int, int, bool]] | None:
    """Start and end of each run of pages in memory or swapped, and whether it was written to.

    All was, unless it is `tracked`. None where there are `most` runs or more, or the kernel is too
    old to tell.
    """
    regions = ctypes.create_string_buffer(REGION.size * most)
    categories = (0, THERE, _WRITTEN | THERE | _GUARD)
    try:
        found, _ = _scan(pagemap, 0, start, end, regions, most, categories)
    except OSError:
        return None
    if len(found) == most:
        return None
    return [
        (first, last, bool(kind & _WRITTEN) or not tracked)
        for first, last, kind in found
        if not kind & _GUARD
    ]


def tracks(pagemap: int, address: int) -> bool:
    """Whether the mapping there is registered with a userfaultfd as `written` needs it."""
    regions = ctypes.create_string_buffer(REGION.size)
    end = address + mmap.PAGESIZE
    try:
        _scan(pagemap, _CHECK, address, end, regions, 1, (0, THERE, THERE))
    except OSError:
        return False
    return True


def _scan(
    pagemap: int,
    flags: int,
    start: int,
    end: int,
    regions: ctypes.Array[ctypes.c_char],
    room: int,
    categories: tuple[int, int, int],
) -> tuple[list[tuple[int, int, int]], int]:
    """The regions found, and how far the kernel went; that may be where it was before, if it went
    in several goes. `categories`: all of, any of, told."""
    argument = bytearray(
        ARGUMENT.pack(
            ARGUMENT.size, flags, start, end, 0, ctypes.addressof(regions), room, 0,
            0, *categories,
        )
    )  # fmt: skip
    found = fcntl.ioctl(pagemap, SCAN, argument)
    rows = list(REGION.iter_unpack(regions.raw[: found * REGION.size]))
    return rows, ARGUMENT.unpack(argument)[4]
