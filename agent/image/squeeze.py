"""Whether a record is worth compressing on its way, by measurement, and the compression (zstd).

It pays where the network takes longer for the bytes that are saved than the processor for saving
them. What the network takes, the transport measures (TCP's own accounts: time that the receiver or
the sender needed is not the network's). What the processor takes is known from what was compressed
before, and what is saved from a sample of the very record. So nothing is compressed on a link that
is not the bottleneck: not ahead of the freeze and not in the blackout.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any


def _found() -> Any:
    """The module zstd: of Python 3.14, or the same as a package; None where there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


zstd = _found()
_LEVEL = 1
_WINDOW_LOG = 24  # of what is decompressed; level 1 stays below
_SMALLEST = 64 << 10  # bytes of a record
_FASTEST = 1e-9  # seconds a byte: no level is faster on what it makes smaller
_FIRST_COST = 2e-9  # seconds a byte, until it was measured
_SLICES, _SLICE = 4, 8 << 10  # the sample
_MARGIN = 1.25  # what is saved has to be worth so much more than it costs
_WEIGHT = 0.25  # of the last record in the cost


class Squeezer:
    """Decides for each record, and compresses."""

    def __init__(
        self,
        compress: Callable[[bytes], bytes],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._compress = compress
        self._clock = clock
        self._cost = _FIRST_COST
        self.wire = 0.0  # seconds that the network takes for a byte; 0: it is not the bottleneck

    def squeeze(self, body: bytes) -> bytes | None:
        """The body in fewer bytes; None where that does not pay."""
        if self.wire <= _FASTEST or len(body) < _SMALLEST:
            return None
        step = len(body) // _SLICES
        sample = b"".join(body[at * step : at * step + _SLICE] for at in range(_SLICES))
        saved = 1 - len(self._compress(sample)) / len(sample)
        if saved * self.wire <= self._cost * _MARGIN:
            return None
        begin = self._clock()
        packed = self._compress(body)
        took = (self._clock() - begin) / len(body)
        self._cost += (took - self._cost) * _WEIGHT
        return packed if len(packed) < len(body) else None


def squeezer(other_can: object) -> Squeezer | None:
    """None where one of the two hosts cannot; `other_can`: what the other has said."""
    if zstd is None or other_can is not True:
        return None
    return Squeezer(lambda data: bytes(zstd.compress(data, _LEVEL)))


def expand(data: bytes | memoryview, limit: int) -> bytes | None:
    """What was squeezed, of at most `limit` bytes; None where it is not that."""
    if zstd is None:
        return None
    options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(options=options)
    try:
        body: bytes = decompressor.decompress(data, max_length=limit)
    except zstd.ZstdError:
        return None
    return body if decompressor.eof and not decompressor.unused_data else None
