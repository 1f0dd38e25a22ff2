"""How fast something may go: bytes a second, kept by whoever sends."""

from __future__ import annotations

import asyncio

MIN_RATE, MAX_RATE = 100_000, 10**12  # bytes a second; below, one record would seem like silence
_BEHIND = 0.05  # seconds that may be made up for: less than a buffer in the network holds


class Bandwidth:
    """A rate that is kept over any time longer than that of a record or two."""

    def __init__(self, rate: int) -> None:
        """`rate`: bytes a second; 0: no limit."""
        self._rate = rate
        self._due = 0.0  # when what was sent has had its time
        self.waited = 0.0  # seconds in all

    async def spend(self, size: int) -> None:
        """`size` bytes were sent: wait as long as they are to take."""
        if not self._rate:
            return
        now, wanted = asyncio.get_running_loop().time(), size / self._rate
        self._due = max(self._due, now - max(wanted, _BEHIND)) + wanted  # sending took some of it
        if self._due > now:
            self.waited += self._due - now
            await asyncio.sleep(self._due - now)
