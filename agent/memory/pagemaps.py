"""Maps of a process's pages, one byte each: what there is when it is frozen, and what of it is not
at the destination yet. No I/O but to ask the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from agent.kernel import pagemap
from agent.memory.layout import PAGE
from agent.memory.ranges import Range

NONE, SENT, LATER = 0, 1, 2  # not there; there, and sent; there, and comes later
MOST = 1 << 16  # pages of a map
_FEW = 1024  # runs by which a map is made at once
_NEAR = 16  # pages that are taken for one, where one of them comes later
_MANY = 64  # runs from which on they are
_ENTRY = 8  # bytes a page in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)
_STARTS = (bytes([NONE, LATER]), bytes([SENT, LATER]))
_ALL = bytes([NONE, SENT, LATER])


def _table(protected: int) -> bytes:
    """What a page is by the highest byte of its entry: bit 63 in memory, 62 swapped, not 58: a
    guard page (Linux 6.15); 57: protected by a userfaultfd, so not written to."""
    kinds = (LATER, protected)
    return bytes(
        NONE if not one & 0xC0 or one & 0x04 else kinds[bool(one & 0x02)] for one in range(256)
    )


_TRACKED, _UNTRACKED = _table(SENT), _table(LATER)
IS_LATER = bytes(int(one == LATER) for one in range(256))
IS_THERE = bytes(int(one != NONE) for one in range(256))


def is_map(pages: bytes) -> bool:
    """Whether it can be one: what came from elsewhere."""
    return len(pages) <= MOST and not pages.translate(None, _ALL)


def look(fd: int, start: int, end: int, *, tracked: bool) -> Iterator[tuple[int, bytes]]:
    """Address and map of each part of a mapping in which something is; the process stands still.

    `fd`: of /proc/PID/pagemap. `tracked`: all that was sent was protected by a userfaultfd then;
    else all comes later. Little-endian machines only, as CRIU's images. Raises `OSError`.
    """
    if tracked and not pagemap.tracks(fd, start):
        tracked = False
    table = _TRACKED if tracked else _UNTRACKED
    while start < end:
        until = min(start + MOST * PAGE, end)
        runs = pagemap.here(fd, start, until, tracked=tracked, most=_FEW)
        if runs is not None:
            pages = _of_runs(runs, start, until)
        else:
            size = (until - start) // PAGE * _ENTRY
            pages = os.pread(fd, size, start // PAGE * _ENTRY)[_ENTRY - 1 :: _ENTRY]
            pages = pages.translate(table)
            if not pages:  # it has ended
                return
        if body := pages.strip(b"\0"):
            yield start + (len(pages) - len(pages.lstrip(b"\0"))) * PAGE, body
        start += len(pages) * PAGE


def _of_runs(runs: list[tuple[int, int, bool]], start: int, end: int) -> bytes:
    pages = bytearray((end - start) // PAGE)
    for first, last, written in runs:
        count = (last - first) // PAGE
        at = (first - start) // PAGE
        pages[at : at + count] = (b"\2" if written else b"\1") * count
    return bytes(pages)


def spans(flags: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each run of ones in a string of zeros and ones."""
    end = 0
    while (start := flags.find(1, end)) >= 0:
        end = flags.find(0, start)
        if end < 0:
            end = len(flags)
        yield start, end


def runs(address: int, pages: bytes) -> list[Range]:
    """Start and end of what comes later, of a map from an address on."""
    return [
        (address + start * PAGE, address + end * PAGE)
        for start, end in spans(pages.translate(IS_LATER))
    ]


def sent(pages: bytes) -> bytes:
    """The map when all of it was sent."""
    return pages.translate(IS_THERE)


def near(pages: bytes) -> bytes:
    """Where much of it comes later in little pieces, what is near those comes later, too: each
    piece costs more than some pages do."""
    if sum(map(pages.count, _STARTS)) <= _MANY:
        return pages
    size = len(pages)
    length = -(-size // _NEAR) * _NEAR
    later = pages.translate(IS_LATER).ljust(length, b"\0")
    some = 0
    for one in range(_NEAR):
        some |= int.from_bytes(later[one::_NEAR], "little")
    blocks = some.to_bytes(length // _NEAR, "little")
    spread = bytearray(length)
    for one in range(_NEAR):
        spread[one::_NEAR] = blocks
    there = int.from_bytes(pages.translate(IS_THERE), "little")
    # Byte by byte: 1 where it is there, and 1 more where something near it comes later.
    return (there + (there & int.from_bytes(spread, "little"))).to_bytes(size, "little")
