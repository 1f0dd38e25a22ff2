"""Which memory of a process is private and anonymous, and which pages of it are there."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator

from agent.kernel import proc

PAGE = mmap.PAGESIZE
LARGEST = 1 << 56  # no address of a process is beyond (five-level page tables)

_SPECIAL = re.compile(r"\[(vdso|vvar.*|vsyscall|uprobes)\]")
_ENTRY = 8  # bytes a page in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)
_AT_ONCE = 1 << 16  # entries read at once
# Of the highest byte: bit 63: present, bit 62: swapped, but not bit 58: a guard page (Linux 6.15).
_THERE = re.compile(
    b"[%s]+" % re.escape(bytes(one for one in range(256) if one & 0xC0 and not one & 0x04))
)


def is_run(address: int, pages: int) -> bool:
    """Whether so many pages may be at this address: what came from elsewhere says much."""
    return address % PAGE == 0 and pages > 0 and 0 <= address <= LARGEST - pages * PAGE


def anonymous(pid: int) -> list[tuple[int, int]]:
    """Start and end of each private anonymous mapping. Raises `OSError`."""
    return [
        (one.start, one.end)
        for one in proc.maps(pid)
        if not one.inode and one.permissions[3] == "p" and not _SPECIAL.fullmatch(one.path)
    ]


def present(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of pages that are in memory or swapped, between two addresses.

    `pagemap`: a descriptor of /proc/PID/pagemap. Little-endian machines only, as CRIU's images.
    """
    while start < end:
        count = min((end - start) // PAGE, _AT_ONCE)
        entries = os.pread(pagemap, count * _ENTRY, start // PAGE * _ENTRY)
        highest = entries[_ENTRY - 1 :: _ENTRY]
        if not highest:  # it has ended
            return
        for run in _THERE.finditer(highest):
            yield start + run.start() * PAGE, start + run.end() * PAGE
        start += len(highest) * PAGE
