"""What this machine's orchestrator has begun, and what came of it: one JSON file a migration.

In the user's state directory (XDG_STATE_HOME, ~/.local/state): streamferry/migrations/ID.json,
0600. The hosts' own journals decide; these only name the hosts, and keep the results.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path
from typing import Any, TypedDict, cast

from platformdirs import user_state_path

from agent.plan import ID_PATTERN
from orchestrator.recovery import Named

KEPT = 1000  # records; the oldest that have a result go first

Json = dict[str, Any]


class Record(TypedDict):
    """One file."""

    id: str
    source: str
    destination: str
    pid: int
    source_id: str  # the hosts' own ids (`agent.host_id`)
    destination_id: str
    ssh_config: str | None
    begun: str  # ISO 8601, local time with its offset
    result: Json | None  # None: it never came to its end here


def directory() -> Path:
    return user_state_path("streamferry") / "migrations"


class Records:
    """The files of one directory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or directory()
        self._full = False

    def fill(self) -> None:
        """From now on act as a full disk would."""
        self._full = True

    def begin(self, named: Named, ssh_config: str | None) -> None:
        """Raises `OSError`."""
        begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        config = os.path.abspath(ssh_config) if ssh_config else None
        self._write(Record(
            id=named.id, source=named.source, destination=named.destination, pid=named.pid,
            source_id=named.source_id, destination_id=named.destination_id,
            ssh_config=config, begun=begun, result=None,
        ))  # fmt: skip

    def end(self, migration: str, result: Json) -> None:
        """Raises `OSError`; nothing where it was never begun."""
        record = self.get(migration)
        if record is not None:
            record["result"] = result
            self._write(record)
            self._prune()

    def get(self, migration: str) -> Record | None:
        """One of them; None where there is none, or it cannot be read."""
        if not ID_PATTERN.fullmatch(migration):
            return None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads((self._path / f"{migration}.json").read_text())
            values = {name: found[name] for name in Record.__annotations__}
            if isinstance(values["result"], dict | None) and isinstance(values["pid"], int):
                return cast(Record, values)
        return None

    def all(self) -> list[Record]:
        """All of them, oldest first."""
        with contextlib.suppress(OSError):
            names = sorted(one.stem for one in self._path.glob("*.json"))
            return [record for name in names if (record := self.get(name)) is not None]
        return []

    def _write(self, record: Record) -> None:
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._path / f"{record['id']}.json"
        fresh = target.with_suffix(f".{os.getpid()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(record, file)
        fresh.replace(target)

    def _prune(self) -> None:
        names = sorted(self._path.glob("*.json"))
        for path in names[: max(len(names) - KEPT, 0)]:
            record = self.get(path.stem)
            if record is None or record["result"] is not None:
                path.unlink(missing_ok=True)
