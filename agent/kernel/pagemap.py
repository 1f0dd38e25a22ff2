"""PAGEMAP_SCAN: which pages of a process are there, or were written to (since Linux 6.7).

Numbers are from include/uapi/linux/fs.h (struct pm_scan_arg, struct page_region).
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Iterator

_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_ARGUMENT = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")  # start, end, categories
_REGIONS = 4096  # taken at once
_WRITE_PROTECT, _CHECK = 1 << 0, 1 << 1  # PM_SCAN_WP_MATCHING, PM_SCAN_CHECK_WPASYNC
_WRITTEN, _PRESENT, _SWAPPED = 1 << 1, 1 << 3, 1 << 4  # PAGE_IS_*


def written(pagemap: int, start: int, end: int, *, protect: bool) -> Iterator[tuple[int, int]]:
    """Runs of pages that were written to since they were protected, and are in memory or swapped.

    The range is registered with a userfaultfd that protects from writes asynchronously. `protect`:
    those that are found are protected again, at the same moment. Raises `OSError`; what was
    protected before is not told then.
    """
    regions = ctypes.create_string_buffer(_REGION.size * _REGIONS)
    flags = _CHECK | (_WRITE_PROTECT if protect else 0)
    while start < end:
        argument = bytearray(
            _ARGUMENT.pack(
                _ARGUMENT.size, flags, start, end, 0, ctypes.addressof(regions), _REGIONS, 0,
                0, _WRITTEN, _PRESENT | _SWAPPED, _WRITTEN | _PRESENT | _SWAPPED,
            )
        )  # fmt: skip
        found = fcntl.ioctl(pagemap, _SCAN, argument)
        for first, last, _ in _REGION.iter_unpack(regions.raw[: found * _REGION.size]):
            yield first, last
            start = last
        # walk_end; of a walk that the kernel did in several it may be where an earlier one ended
        start = max(start, _ARGUMENT.unpack(argument)[4])
