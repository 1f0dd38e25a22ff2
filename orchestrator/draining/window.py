"""Until when a drain may begin what it moves."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

from agent.errors import EXIT_REFUSED, AgentError


class WindowOver(AgentError):
    code = "window-over"
    template = "its window ended at {end}"
    hint_template = "Drain when there is time, or make the schedule's `window` longer."
    exit_status = EXIT_REFUSED


class Window:
    """Time that a drain has. What is on the move when it ends comes to its own end."""

    def __init__(self, end: float | None = None, now: Callable[[], float] = time.time) -> None:
        """`end`: seconds since the epoch; None: it never ends."""
        self._end, self._now = end, now
        self._begun: dict[str, float] = {}
        self._longest = 0.0

    def begin(self, key: str) -> None:
        """A workload begins to move."""
        self._begun[key] = self._now()

    def ended(self, key: str) -> None:
        """It has come to its end, whatever that is."""
        if (begun := self._begun.pop(key, None)) is not None:
            self._longest = max(self._longest, self._now() - begun)

    def why_not(self) -> str:
        """Why nothing more may begin, in words; "" where it may.

        One that takes as long as the longest so far has to end in it.
        """
        if self._end is None:
            return ""
        now = self._now()
        if now >= self._end:
            return f"its window ended at {_shown(self._end)}"
        if now + self._longest > self._end:
            return f"its window ends at {_shown(self._end)}, and one took {self._longest:.1f} s"
        return ""

    def check(self) -> None:
        """Raises `WindowOver`."""
        if self._end is not None and self._now() >= self._end:
            raise WindowOver(end=_shown(self._end))


def _shown(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
