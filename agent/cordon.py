"""A cordoned host takes no process in: one file says so to every orchestrator.

`/var/lib/streamferry/cordon`, 0600: {"since": seconds since the epoch, "reason": str} as JSON. A
file that cannot be read cordons, too: it is there because somebody wanted the host left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TypedDict

from agent import private
from agent.errors import EXIT_REFUSED, AgentError, ProtocolError, shown

FILE = Path("/var/lib/streamferry/cordon")
LONGEST = 200  # characters of a reason
_READ = 4096  # bytes of the file that are looked at


class CordonFacts(TypedDict):
    since: int  # seconds since the epoch; 0 where the file does not say
    reason: str


class Cordoned(AgentError):
    code = "cordoned"
    template = "{host} is cordoned{reason}: nothing migrates onto it"
    hint_template = "Choose another host, or open it again: `migrate uncordon {host}`."
    exit_status = EXIT_REFUSED


class CordonFailed(AgentError):
    code = "cordon-failed"
    template = "{path} cannot be written: {detail}"
    hint_template = "The agent needs a disk with room for it, in a directory of its own."
    exit_status = EXIT_REFUSED


def because(facts: CordonFacts) -> str:
    """The reason as it stands in a message; "" without one."""
    return f" ({facts['reason']})" if facts["reason"] else ""


def look(path: Path = FILE) -> CordonFacts | None:
    """Whether this host is cordoned, since when and why. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return CordonFacts(since=0, reason=f"{path} cannot be read: {error.strerror}")
    try:
        data = os.pread(fd, _READ, 0)
    finally:
        os.close(fd)
    try:
        value = json.loads(data.decode())
        since, reason = int(value["since"]), str(value["reason"])[:LONGEST]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return CordonFacts(since=0, reason=f"{path} does not say why")
    return CordonFacts(since=min(max(since, 0), 1 << 60), reason=reason)


def put(reason: str, path: Path = FILE) -> CordonFacts:
    """Cordon this host; the cordon that holds, which may be an earlier one. It is on disk.

    Raises `CordonFailed` and `ProtocolError`.
    """
    if not isinstance(reason, str) or len(reason) > LONGEST or not reason.isprintable():
        raise ProtocolError(detail=f"{shown(reason)} is no reason for a cordon")
    try:
        if (found := look(path)) is not None:
            return found
        private.make(path.parent, hidden=False)
        facts = CordonFacts(since=int(time.time()), reason=reason)
        fresh = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(fresh, flags, 0o600), "w") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        private.sync(path.parent)
    except OSError as error:
        raise CordonFailed(path=str(path), detail=error.strerror or str(error)) from error
    return facts


def lift(path: Path = FILE) -> bool:
    """Open this host again; whether it was cordoned. Raises `CordonFailed`."""
    try:
        path.unlink()
        private.sync(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CordonFailed(path=str(path), detail=error.strerror or str(error)) from error
    return True


def check(host: str, path: Path = FILE) -> None:
    """Raises `Cordoned`; `host`: how the orchestrator names this one."""
    facts = None
    with contextlib.suppress(OSError):
        facts = look(path)
    if facts is not None:
        raise Cordoned(host=host, reason=because(facts))
