"""When the runs of a schedule are due, and when they begin. Pure.

Times are seconds since the epoch: of two that a clock shows alike, as clocks are put back, each is
another. A time of day that the clock leaves out is due right after the gap, and one that it shows
twice is due once, as with Debian's cron (`cronsim`); an hour or minute given with `*` is due
whenever the clock shows it.
"""

from __future__ import annotations

import datetime
import hashlib
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass

from cronsim import CronSim

from orchestrator.playbook.model import Schedule

GRACE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Times:
    """Of one playbook. `salt` is the store's own, so that no two of them have the same jitter."""

    schedule: Schedule
    name: str
    salt: str = ""

    def after(self, moment: float) -> Iterator[float]:
        """When runs are due, without end but for dates that never come again."""
        zone = zoneinfo.ZoneInfo(self.schedule.time_zone)
        last = moment
        for found in CronSim(self.schedule.cron, datetime.datetime.fromtimestamp(moment, zone)):
            due = found.timestamp()
            if due > last:  # in the hour that comes twice it begins with the first of them
                yield due
                last = due

    def next(self, moment: float) -> float | None:
        return next(self.after(moment), None)

    def begin(self, due: float) -> float:
        """When the run that is due then begins: after its jitter, which is always the same."""
        digest = hashlib.sha256(f"{self.salt}\n{self.name}\n{due:.0f}".encode()).digest()
        return due + (self.schedule.jitter or 0.0) * int.from_bytes(digest[:6]) / (1 << 48)

    def closes(self, due: float) -> float | None:
        """When the window of a run ends."""
        window = self.schedule.window
        return None if window is None else due + window

    def missed(self, due: float, now: float) -> bool:
        """Whether it is too late for a run to begin as if in time."""
        grace = GRACE if self.schedule.grace is None else self.schedule.grace
        return now - self.begin(due) > grace

    def over(self, due: float, now: float) -> bool:
        """Whether its window has ended."""
        closes = self.closes(due)
        return closes is not None and now >= closes

    def shown(self, moment: float) -> str:
        """ISO 8601 in the schedule's time zone."""
        zone = zoneinfo.ZoneInfo(self.schedule.time_zone)
        return datetime.datetime.fromtimestamp(moment, zone).isoformat(timespec="seconds")
