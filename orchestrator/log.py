"""The structured log: off unless asked for, and then formatted and written by a thread of its own.

What logs only hands a record over, so neither a slow disk nor a reader that does not read holds a
migration up; without a log no level is enabled, and nothing is handed over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

from agent.errors import EXIT_USAGE, AgentError

LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING,
    "error": logging.ERROR,
}  # fmt: skip
PACKAGES = ("agent", "orchestrator")
_TEXT = "%(asctime)s %(levelname)s %(about)s%(message)s"
# Of a record: what `logging` gives it, and what is in the line's fixed part.
_FIXED = (*logging.makeLogRecord({}).__dict__, "message", "asctime", "about")

_about: ContextVar[dict[str, Any] | None] = ContextVar("about", default=None)
_stderr_taken = False

for _package in PACKAGES:  # else `logging` writes warnings to stderr that nobody asked for
    logging.getLogger(_package).addHandler(logging.NullHandler())


class LogUnwritable(AgentError):
    code = "log-unwritable"
    template = "the log cannot be written to {path}: {detail}"
    hint_template = "Give --log-file a file that this user may write."
    exit_status = EXIT_USAGE


def bind(**fields: Any) -> dict[str, Any]:
    """Have every line of this task, and of those that it starts, carry these, too.

    What is returned may be changed; a task that binds anew has a copy.
    """
    bound = {**(_about.get() or {}), **fields}
    _about.set(bound)
    return bound


def takes_stderr() -> bool:
    """Whether stderr has lines of JSON alone: what else goes there is to be logged."""
    return _stderr_taken


@contextlib.contextmanager
def writing(as_json: bool, path: str | None, level: int) -> Iterator[None]:
    """Log to a file, or stderr; nothing where neither is asked for. Raises `LogUnwritable`."""
    global _stderr_taken
    if not as_json and path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        handler = _handler(path, stack)
        handler.setFormatter(_json() if as_json else _Text(_TEXT))
        records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        listener = QueueListener(records, handler)
        root, taking = logging.getLogger(), _Taking(records)
        levels = {name: logging.getLogger(name).level for name in ("", "asyncssh", "asyncio")}
        root.setLevel(level)
        for name in ("asyncssh", "asyncio"):  # at info they tell of every packet, or next to that
            logging.getLogger(name).setLevel(max(level, logging.WARNING))
        root.addHandler(taking)
        listener.start()
        _stderr_taken = as_json and path is None
        try:
            yield
        finally:
            _stderr_taken = False
            root.removeHandler(taking)
            listener.stop()
            for name, before in levels.items():
                logging.getLogger(name).setLevel(before)


class _Taking(QueueHandler):
    """Hands a record over with what is bound; it is formatted elsewhere."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        for name, value in (_about.get() or {}).items():
            record.__dict__.setdefault(name, value)
        return record


class _Writing(logging.StreamHandler[Any]):
    """A reader that has gone, or a full disk, is said once, and does not stop anything."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            with contextlib.suppress(OSError):
                os.write(2, f"migrate: the log cannot be written: {error.strerror}\n".encode())


class _Text(logging.Formatter):
    """A line a person reads: the migration and the host in front, what else is known behind."""

    def format(self, record: logging.LogRecord) -> str:
        about = (record.__dict__.get(name) for name in ("migration", "host"))
        record.about = "".join(f"{one} " for one in about if one)
        line = super().format(record)
        more = {name: one for name, one in record.__dict__.items() if name not in _FIXED}
        said = (f"{name}={one}" for name, one in more.items()
                if name not in ("migration", "host") and one is not None)  # fmt: skip
        text = " ".join([line, *said])
        return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _handler(path: str | None, stack: contextlib.ExitStack) -> logging.Handler:
    if path is None:
        return _Writing(sys.stderr)
    try:
        file = open(path, "a", encoding="utf-8")
    except OSError as error:
        raise LogUnwritable(path=path, detail=error.strerror or str(error)) from None
    stack.callback(_close, file)
    return _Writing(file)


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # that was said when the last line was written
        file.close()


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    class Lines(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            data = {"time": log_data.pop("time"), **log_data}
            data["level"] = data["level"].lower()
            return {name: one for name, one in data.items() if one is not None}

    return Lines(
        ["levelname", "message", "name"],
        rename_fields={"levelname": "level", "message": "event", "name": "logger"},
        timestamp="time",
    )
