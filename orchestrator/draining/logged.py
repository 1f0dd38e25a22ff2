"""What a drain tells, also in the log."""

from __future__ import annotations

import logging
from typing import Protocol

from orchestrator.draining import states
from orchestrator.draining.journal import Item

_LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """Is told of everything as it happens."""

    def changed(self, item: Item) -> None: ...
    def progress(self, item: Item, phase: str, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


class Logged:
    """A listener before another."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def changed(self, item: Item) -> None:
        level = logging.WARNING if item.error else logging.INFO
        if _LOG.isEnabledFor(level):
            known = {"migration": item.migration} if item.migration else {}
            _LOG.log(level, "workload %s", item.state, extra={
                **known, "workload": item.key, "pid": item.pid, "destination": item.destination,
                "blackout_ms": item.blackout_ms if item.state == states.MOVED else None,
                "stall_ms": item.stall_ms if item.state == states.MOVED else None,
                "code": item.error["code"] if item.error else None,
                "error": item.error["message"] if item.error else None,
            })  # fmt: skip
        self._listener.changed(item)

    def progress(self, item: Item, phase: str, done: int, total: int) -> None:
        self._listener.progress(item, phase, done, total)

    def note(self, text: str) -> None:
        _LOG.info("%s", text)
        self._listener.note(text)

    def heard(self, text: str) -> None:
        """A note of a migration, which has logged it."""
        self._listener.note(text)
