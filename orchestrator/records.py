"""What this machine's orchestrator has begun, and what came of it: one JSON file a migration.

In the user's state directory (XDG_STATE_HOME, ~/.local/state): streamferry/migrations/ID.json,
0600. The hosts' own journals decide; these only name the hosts, and keep the results. A record
that is not whole and of the right shape is damaged: it is named, never passed over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any, TypedDict, cast, get_type_hints

from platformdirs import user_state_path

from agent import host_id
from agent.errors import EXIT_REFUSED, AgentError, ProtocolError, shown
from agent.plan import ID_PATTERN, MAX_PID
from agent.probe.facts import validate
from orchestrator import atomic
from orchestrator.inventory import parse_target
from orchestrator.migration import account as accounts
from orchestrator.migration.account import Account
from orchestrator.migration.result import IN_DOUBT, Json, checked
from orchestrator.recovery import Named

KEPT = 1000  # records; the oldest that have come to an end go first
LARGEST = 64 << 20  # bytes of a record; JSON needs up to six for one of a frame, which has limits
_SUFFIX = ".json"
_UNWHOLE = re.compile(rf"{ID_PATTERN.pattern}\.(?!json$)[a-z0-9_]+")  # a file that is written
_WRITING = 3600.0  # seconds after which nobody writes it any more


class Begun(TypedDict):
    """What is known when a migration begins."""

    id: str
    source: str
    destination: str
    pid: int
    source_id: str  # the hosts' own ids (`agent.host_id`); "" where not known
    destination_id: str
    ssh_config: str | None
    begun: str  # ISO 8601, local time with its offset


class Record(Begun):
    """One file."""

    result: Json | None  # of `orchestrator.migration.result`; None: it never came to its end here
    account: Account | None  # None: whoever saw it did not live to write it


class RecordDamaged(AgentError):
    code = "record-damaged"
    template = "the record {path} cannot be gone by: {detail}"
    hint_template = (
        "Mend it or move it away; what it may have named is in its hosts' journals: "
        "`migrate recover HOST`."
    )
    exit_status = EXIT_REFUSED


class NothingBegun(AgentError):
    code = "nothing-begun"
    template = "no migration was begun here"
    hint_template = "Records are kept for each user, on the machine where `migrate` was run."
    exit_status = EXIT_REFUSED


def directory() -> Path:
    return user_state_path("streamferry") / "migrations"


def is_open(record: Record) -> bool:
    """Whether a migration is still to be recovered, as far as its record goes."""
    return record["result"] is None or record["result"]["outcome"] == IN_DOUBT


class Records:
    """The files of one directory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or directory()
        self._full = False

    def fill(self) -> None:
        """From now on act as a full disk would."""
        self._full = True

    def begin(self, named: Named, ssh_config: str | None) -> None:
        """On disk when this returns. Raises `OSError`."""
        self._sweep()
        begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        config = ssh_config
        if config and config != "none":  # which is no file, as for ssh
            config = os.path.abspath(config)
        self._write(Record(
            id=named.id, source=named.source, destination=named.destination, pid=named.pid,
            source_id=named.source_id, destination_id=named.destination_id,
            ssh_config=config, begun=begun, result=None, account=None,
        ))  # fmt: skip

    def end(self, migration: str, result: Json, account: Account | None = None) -> None:
        """On disk when this returns; nothing where it was never begun.

        Raises `OSError` and `RecordDamaged`.
        """
        record = self.get(migration)
        if record is not None:
            record["result"] = result
            record["account"] = account or record["account"]
            self._write(record)
            self._prune()

    def get(self, migration: str) -> Record | None:
        """One of them; None where there is none. Raises `RecordDamaged`."""
        if not ID_PATTERN.fullmatch(migration):
            return None
        path = self._file(migration)
        try:
            return _record(_contents(path), migration)
        except FileNotFoundError:
            return None
        except OSError as error:
            detail = error.strerror or str(error)
        except RecursionError:
            detail = "it is nested too deeply"
        except ValueError as error:
            detail = f"it is not JSON: {error}"
        except AgentError as error:
            detail = str(error.fields["detail"])
        raise RecordDamaged(path=str(path), detail=detail)

    def last(self) -> Record | None:
        """The one that was begun last; None where there is none. Raises what `get` does."""
        try:
            names = self._names()
        except OSError as error:
            raise RecordDamaged(path=str(self._path), detail=error.strerror or str(error)) from None
        return self.get(names[-1]) if names else None

    def look(self) -> tuple[list[Record], list[RecordDamaged]]:
        """All that can be read, oldest first, and what is wrong with the others."""
        records: list[Record] = []
        damaged: list[RecordDamaged] = []
        try:
            names = self._names()
        except OSError as error:
            return [], [RecordDamaged(path=str(self._path), detail=error.strerror or str(error))]
        for name in names:
            try:
                record = self.get(name)
            except RecordDamaged as error:
                damaged.append(error)
            else:
                records += [record] if record is not None else []
        return records, damaged

    def all(self) -> list[Record]:
        """Those that can be read, oldest first; for who can do without the others."""
        return self.look()[0]

    def _file(self, migration: str) -> Path:
        return self._path / f"{migration}{_SUFFIX}"

    def _names(self) -> list[str]:
        """The ids of all, oldest first. Raises `OSError`."""
        try:
            names = os.listdir(self._path)
        except FileNotFoundError:
            return []
        ids = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(one for one in ids if ID_PATTERN.fullmatch(one))

    def _write(self, record: Record) -> None:
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = json.dumps(record)
        if len(data) > LARGEST:  # nobody would read it
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        atomic.make(self._path)
        atomic.replace(self._file(record["id"]), data.encode())

    def _sweep(self) -> None:
        """Take away what those have left who were killed while they wrote."""
        with contextlib.suppress(OSError):
            for name in filter(_UNWHOLE.fullmatch, os.listdir(self._path)):
                path = self._path / name
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.lstat().st_mtime > _WRITING:
                        path.unlink()

    def _prune(self) -> None:
        """Only what is known to have come to its end."""
        with contextlib.suppress(OSError):
            for name in self._names()[:-KEPT]:
                with contextlib.suppress(RecordDamaged):
                    record = self.get(name)
                    if record is not None and not is_open(record):
                        self._file(name).unlink(missing_ok=True)


def _contents(path: Path) -> bytes:
    """All of a file, within the limit; waits for nobody. Raises `OSError`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise _not_regular() from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular()
        if found.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB")
        with open(fd, "rb", closefd=False) as file:
            return file.read(LARGEST)
    finally:
        os.close(fd)


def _not_regular() -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file")


def _record(data: bytes, migration: str) -> Record:
    """A record that was checked whole. Raises `ValueError`, `RecursionError`, `AgentError`."""
    if not data.strip(b"\0 \t\r\n"):
        raise ProtocolError(detail="it is empty" if not data else "there is nothing in it")
    value = json.loads(data.decode())
    if not isinstance(value, dict):
        raise ProtocolError(detail=f"{shown(value)} is not a record")
    result = value.get("result", "")
    known = get_type_hints(Begun)
    begun = {name: one for name, one in value.items() if name in known}
    account = value.get("account")
    record: Any = {
        **validate(begun, Begun, "the record"),
        "result": None if result is None else checked(result, "its result"),
        "account": None if account is None else accounts.checked(account, "its account"),
    }
    for named in (record["id"], migration if result is None else record["result"]["id"]):
        if named != migration:
            raise ProtocolError(detail=f"it is of migration {shown(named)}")
    for host in (record["source"], record["destination"]):
        parse_target(host)
    for identity in filter(None, (record["source_id"], record["destination_id"])):
        host_id.checked(identity)
    if not 1 <= record["pid"] <= MAX_PID:
        raise ProtocolError(detail=f"{record['pid']} is not a PID")
    return cast(Record, record)
