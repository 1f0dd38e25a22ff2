"""The clock that schedules go by."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """The host's own; or, for tests, one that was at `begin` when that was at `real`, and is
    `rate` times as fast."""

    rate: float = 1.0
    real: float = 0.0
    begin: float = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.begin + (time.time() - self.real) * self.rate

    def lasts(self, until: float) -> float:
        """How many seconds of the host's clock it is until then."""
        return max(until - self.now(), 0.0) / self.rate

    @classmethod
    def of(cls, text: str) -> Clock:
        """Of "RATE,REAL,BEGIN". Raises `ValueError`."""
        rate, real, begin = (float(one) for one in text.split(","))
        return cls(rate, real, begin)
