"""Keep freed memory for the next buffer.

By default glibc maps each large buffer afresh and gives it back when it is freed: every record of
an image would then be paid for with hundreds of page faults, which halves the link's throughput.
"""

from __future__ import annotations

import ctypes

# malloc.h; the largest threshold that glibc takes is half of HEAP_MAX_SIZE
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 32 << 20
_KEPT = 256 << 20
_TOUCHED = 16 << 20


def keep_freed_memory() -> bool:
    """mallopt(3), for the rest of this process; false where the C library has no such thing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
    if kept:
        b"\1" * _TOUCHED  # its pages stay with us
    return kept
