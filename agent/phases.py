"""The named phases of a migration on one host: timed, announced, and known when one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SendEvent = Callable[[str, dict[str, Any]], None]


class Phases:
    """Times phases (they may overlap) and tells the orchestrator of each begin and end."""

    def __init__(self, send_event: SendEvent) -> None:
        self._send_event = send_event
        self.ms: dict[str, float] = {}
        self.spans: list[list[Any]] = []  # [phase, start, seconds], by CLOCK_MONOTONIC
        self.current = "check"
        self.failed_in: str | None = None
        self.unwinding = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside as phase `name`; the first to raise is `failed_in`."""
        self.current = name
        self._send_event("phase", {"name": name, "state": "begin", "unwinding": self.unwinding})
        start = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            if self.failed_in is None:
                self.failed_in = name
            raise
        finally:
            self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        """Say that phase `name` took this long and is over."""
        ms = seconds * 1000
        self.spans.append([name, time.monotonic() - seconds, seconds])
        self.ms[name] = self.ms.get(name, 0.0) + ms
        self._send_event(
            "phase", {"name": name, "state": "end", "ms": ms, "unwinding": self.unwinding}
        )

    @property
    def to_blame(self) -> str:
        """The phase for an error's report."""
        return self.failed_in or self.current
