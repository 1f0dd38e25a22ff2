"""What a drain was about to do, for `migrate drain --resume`: one file a drain, beside the records.

In the user's state directory: streamferry/drains/ID.jsonl, 0600, a JSON object a line, only ever
appended to, each on disk before it is acted upon. A last line that is not whole was never acted
upon. Whoever is at work on a drain holds the file's lock (flock).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent import private
from agent.errors import EXIT_REFUSED, AgentError
from agent.plan import ID_PATTERN
from orchestrator.draining import states
from orchestrator.draining.selection import Found
from orchestrator.playbook.model import Defaults, Drain, Host

LARGEST = 16 << 20  # bytes


class UnknownDrain(AgentError):
    code = "unknown-drain"
    template = "no drain {id} was begun here"
    hint_template = "Not over here: {unfinished}."
    exit_status = EXIT_REFUSED


class DrainBusy(AgentError):
    code = "drain-busy"
    template = "drain {id} is under way: another `migrate drain` is at work on it"
    hint_template = "Wait for its end, or end that one first."
    exit_status = EXIT_REFUSED


class DrainDamaged(AgentError):
    code = "drain-damaged"
    template = "the journal {path} cannot be gone by: {detail}"
    hint_template = (
        "Begin the drain anew; `migrate recover` ends what it had on the move, and what it has "
        "moved is where `migrate list` says."
    )
    exit_status = EXIT_REFUSED


class DrainUnwritten(AgentError):
    code = "drain-unwritten"
    template = "{path} cannot be written: {detail}"
    hint_template = "Free room there; then `migrate drain --resume {id}` goes on."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Begun(_Strict):
    """What a drain is; what is missing in `drain` was so in the playbook."""

    id: str
    begun: str
    ssh_config: str | None
    drain: Drain
    defaults: Defaults
    hosts: dict[str, Host]  # the destinations, by name, as the inventory had them


class Item(_Strict):
    """One workload as it stands."""

    key: str
    name: str
    pid: int
    born: int
    comm: str
    memory: int
    state: str = states.WAITING
    destination: str = ""
    address: str = ""  # its first service address
    migration: str = ""  # the last, of the move or of the way back
    moved: bool = False  # it was at the destination once
    blackout_ms: float = 0.0
    stall_ms: float = 0.0
    error: dict[str, str] | None = None  # {"code", "message", "hint"}
    times: dict[str, float] = Field(default_factory=dict)  # state -> seconds since the epoch

    @classmethod
    def of(cls, found: Found) -> Item:
        rows = asdict(found)
        rows.pop("members")
        return cls(**rows)


@dataclass(slots=True)
class Journal:
    """An open journal, whose lock is held."""

    path: Path
    begun: Begun
    items: dict[str, Item] = field(default_factory=dict)
    over: bool = False
    command: dict[str, Any] | None = None  # {"identity": of the node before, "run": whether it was}
    _fd: int = -1

    @classmethod
    def create(cls, begun: Begun, directory: Path | None = None) -> Journal:
        """A new one, on disk. Raises `DrainUnwritten`."""
        where = directory or drains()
        path = where / f"{begun.id}.jsonl"
        journal = cls(path, begun)
        try:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            private.sync(where.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            journal._fd = os.open(path, flags, 0o600)
            fcntl.flock(journal._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal._append({"begin": begun.model_dump(mode="json", exclude_unset=True)})
            private.sync(where)
        except OSError as error:
            raise journal._unwritten(error) from error
        return journal

    @classmethod
    def open(cls, drain: str, directory: Path | None = None) -> Journal:
        """One that was begun. Raises `UnknownDrain`, `DrainBusy`, `DrainDamaged`."""
        where = directory or drains()
        path = where / f"{drain}.jsonl"
        try:
            if not ID_PATTERN.fullmatch(drain):
                raise FileNotFoundError
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            left = ", ".join(unfinished(where)) or "none"
            raise UnknownDrain(id=drain, unfinished=left) from None
        except OSError as error:
            raise DrainDamaged(path=str(path), detail=error.strerror or str(error)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = _read(path, fd)
            journal._fd = fd
            return journal
        except BlockingIOError:
            os.close(fd)
            raise DrainBusy(id=drain) from None
        except BaseException:
            os.close(fd)
            raise

    def note(self, *items: Item) -> None:
        """Keep how these stand; on disk when this returns. Raises `DrainUnwritten`."""
        for item in items:
            self.items[item.key] = item
        try:
            self._append({"items": [one.model_dump(mode="json") for one in items]})
        except OSError as error:
            raise self._unwritten(error) from error

    def note_command(self, identity: str, run: bool) -> None:
        """`when_empty`'s command is about to be run, or was. Raises `DrainUnwritten`."""
        self.command = {"identity": identity, "run": run}
        try:
            self._append({"command": self.command})
        except OSError as error:
            raise self._unwritten(error) from error

    def end(self) -> None:
        """Nothing of it is left to be done."""
        self.over = True
        with contextlib.suppress(OSError):  # it is seen from its items, too
            self._append({"end": True})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entry: dict[str, Any]) -> None:
        data = (json.dumps({"at": round(time.time(), 3), **entry}) + "\n").encode()
        written = 0
        while written < len(data):
            written += os.write(self._fd, data[written:])
        os.fdatasync(self._fd)

    def _unwritten(self, error: OSError) -> DrainUnwritten:
        detail = error.strerror or str(error)
        return DrainUnwritten(path=str(self.path), detail=detail, id=self.begun.id)


def drains() -> Path:
    """The directory of the journals."""
    return user_state_path("streamferry") / "drains"


def drain_begun(drain: str) -> bool:
    """Whether a drain of this id has a journal."""
    return bool(drain) and (drains() / f"{drain}.jsonl").exists()


def unfinished(directory: Path | None = None) -> list[str]:
    """The ids of drains that are not over, oldest first; of those that can be read."""
    found = []
    for path in sorted((directory or drains()).glob("*.jsonl")):
        with contextlib.suppress(OSError):
            last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
            if not last.endswith(b'"end": true}'):
                found.append(path.stem)
    return found


def _read(path: Path, fd: int) -> Journal:
    """What the file says; an end that is not whole is cut off."""
    size = os.fstat(fd).st_size
    if size > LARGEST:
        raise DrainDamaged(path=str(path), detail=f"it is larger than {LARGEST >> 20} MiB")
    data = os.pread(fd, size, 0)
    whole = data[: data.rfind(b"\n") + 1]
    journal: Journal | None = None
    try:
        for line in whole.splitlines():
            entry = json.loads(line)
            if journal is None:
                journal = Journal(path, Begun.model_validate(entry["begin"]))
            for one in entry.get("items", []):
                item = Item.model_validate(one)
                if item.state not in states.MOVES:
                    raise ValueError(f"no state is named {item.state!r}")
                journal.items[item.key] = item
            journal.command = entry.get("command", journal.command)
            journal.over = "end" in entry
        if journal is None or journal.begun.id != path.stem:
            raise ValueError("it does not begin with what is to be done")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DrainDamaged(path=str(path), detail=said or type(error).__name__) from error
    if len(whole) < len(data):
        os.ftruncate(fd, len(whole))
    return journal
