"""Who this host is to a migration: a random id beside the journals, made with the first of them.

Whoever asks about a migration that has no journal here must know whether there ever was one. A
host whose journals were lost has lost the id with them, and a machine that only answers by the
same name never had it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from agent import private
from agent.errors import ProtocolError, shown

FILE = "host-id"
PATTERN = re.compile(r"[0-9a-f]{32}")


def checked(value: object) -> str:
    """An id that came from elsewhere. Raises `ProtocolError`."""
    if not isinstance(value, str) or not PATTERN.fullmatch(value):
        raise ProtocolError(detail=f"{shown(value, 80)} is no host's id")
    return value


def told(link: object) -> str:
    """The destination's, from what it says of itself. Raises `ProtocolError`."""
    return checked(link.get("host_id") if isinstance(link, dict) else link)


def own(directory: Path) -> str:
    """The id of this host; "" where it has none. Raises `OSError`."""
    try:
        fd = os.open(directory / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    try:
        private.check_file(fd)
        text = os.pread(fd, 64, 0).decode(errors="replace").strip()
    finally:
        os.close(fd)
    return text if PATTERN.fullmatch(text) else ""


def ensure(directory: Path) -> str:
    """`own`, made and on disk. One at a time: the caller holds a lock. Raises `OSError`."""
    if found := own(directory):
        return found
    made = secrets.token_hex(16)
    fresh = directory / f"{FILE}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(fresh, flags, 0o600)
    try:
        os.write(fd, f"{made}\n".encode())
        os.fsync(fd)
        fresh.replace(directory / FILE)
    except BaseException:  # a full disk: what could not be written is not left
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    finally:
        os.close(fd)
    private.sync(directory)
    return made
