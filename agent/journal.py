"""The journal of one migration on one host: what its agent was about to do, for whoever finds it.

A file `/var/lib/streamferry/journal/ID-ROLE`, 0600 in a directory 0700, only ever appended to:

    b"SFJ1", then records: length (u32), CRC-32 of the body (u32), body (msgpack)
    body: {"state": str, "at": seconds since the epoch, "facts": {...}}; state "" notes facts only

A note is written, so it outlives the agent; a decision is on disk (fdatasync) when `record` has
returned, or erased where it cannot be synced. The end may be torn: a record that is not whole was
never acted upon, and what is behind it is wiped before the next is written. Whoever acts for the
host holds the file's lock (flock), the living agent all the time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from agent import host_id, private
from agent.errors import EXIT_REFUSED, AgentError, ProtocolError, shown
from agent.history import (
    FOREIGN,
    MAGIC,
    Entry,
    Facts,
    History,
    packed,
    whole_records,
    why_damaged,
)
from agent.plan import ID_PATTERN
from agent.protocol import TABLES, Log

DIRECTORY = Path("/var/lib/streamferry/journal")

STOPPED = ("T", "t")  # letters of states (proc_pid_stat(5))

_ROOM = 16 << 10  # bytes written ahead, so that a decision needs no more room, nor metadata
LARGEST = 64 << 20  # bytes of a journal; a plan has limits of its own
NAME = re.compile(rf"({ID_PATTERN.pattern})-({'|'.join(TABLES)})")


class JournalError(AgentError):
    code = "journal"
    template = "the journal {path} cannot be used: {detail}"
    hint_template = "The agent needs a disk with room for {path}, in a directory of its own."
    exit_status = EXIT_REFUSED


class JournalDamaged(JournalError):
    code = "journal-damaged"
    template = "the journal {path} cannot be gone by: {detail}"
    hint_template = (
        "See `migrate doctor` on its host. Remove it only once no second copy can run: a source "
        "that asks is then told that its destination has not committed."
    )


class JournalExposed(JournalError):
    code = "journal-exposed"
    template = "the journal {path} is not gone by: {detail}"
    hint_template = (
        "See what it is: `ls -l {path}`, and `migrate doctor` on its host. If nothing but its mode "
        "was changed, `chmod 600 {path}`. Do not remove it while its migration is in doubt: it may "
        "be all that keeps a second copy from running."
    )


class JournalBusy(AgentError):
    code = "journal-busy"
    template = "migration {id} is under way: {who}"
    hint_template = "Wait for its end, or end the agent first; one that is stopped, continue."


class Journal:
    """An open journal, locked. `record` has the signature that `protocol.Machine` wants."""

    def __init__(self, path: Path, fd: int, history: History, end: int) -> None:
        self.path = path
        self._fd = fd
        self.history = history
        self._end = end
        self._full = False

    @classmethod
    def create(cls, migration_id: str, role: str, directory: Path = DIRECTORY) -> Journal:
        """A new one, on disk. Raises `JournalError`, also where it exists."""
        path = directory / f"{migration_id}-{role}"
        with as_journal_error(path):
            private.make(directory)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
        journal = cls(path, fd, History(migration_id, role), len(MAGIC))
        try:
            with as_journal_error(path):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(fd, MAGIC.ljust(_ROOM, b"\0"), 0)
                os.fsync(fd)
                private.sync(directory)
        except BaseException:
            journal.discard()
            raise
        return journal

    @classmethod
    def open(cls, migration_id: str, role: str, directory: Path = DIRECTORY) -> Journal | None:
        """The one of a dead agent, or None where there is none.

        Raises `JournalBusy` while the agent (or another who acts for it) lives, `JournalDamaged`
        where it tells nothing and yet had been written, `JournalError`.
        """
        path = directory / f"{migration_id}-{role}"
        try:
            fd = opened(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with as_journal_error(path):
                private.check_file(fd)
            if os.fstat(fd).st_nlink == 0:  # it has ended meanwhile
                os.close(fd)
                return None
            entries, end = _checked(path, role, contents(fd))
        except BlockingIOError:
            who = _at_work(History(migration_id, role, _entries(fd)))
            os.close(fd)
            raise JournalBusy(id=migration_id, who=who) from None
        except BaseException:
            os.close(fd)
            raise
        journal = cls(path, fd, History(migration_id, role, entries), end)
        if entries:  # else what is there is all that tells what it was
            journal._erase(os.fstat(fd).st_size - end)  # what a crash left behind a torn record
        return journal

    def record(self, state: str, log: Log, facts: Facts) -> None:
        """Append a record; a decision is on disk when this returns. Raises `JournalError`."""
        entry = Entry(state, time.time(), facts)
        data = packed(entry)
        with as_journal_error(self.path):
            if self._end + len(data) > LARGEST:  # nobody would read what is behind
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if self._full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                if os.pwrite(self._fd, data, self._end) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if log is Log.DECISION:
                    os.fdatasync(self._fd)
            except OSError:
                self._erase(len(data))  # who comes next must not find what was never acted upon
                raise
        self._end += len(data)
        self.history.entries.append(entry)

    def _erase(self, size: int) -> None:
        with contextlib.suppress(OSError):
            if size > 0:
                os.pwrite(self._fd, bytes(size), self._end)
                os.fdatasync(self._fd)

    def fill(self) -> None:
        """From now on act as a full disk would."""
        self._full = True

    def note(self, **facts: object) -> None:
        """Append facts, in the state as it is. Raises `JournalError`."""
        self.record("", Log.NOTE, facts)

    def remove(self) -> None:
        """All is over: nothing is to be found here any more. Idempotent.

        Raises `JournalError` where it stays: it may still say what holds no longer.
        """
        try:
            with as_journal_error(self.path):
                self.path.unlink(missing_ok=True)
                private.sync(self.path.parent)
        finally:
            self.close()

    def discard(self) -> None:
        """As `remove`, of one by which nothing was done: it may stay."""
        with contextlib.suppress(JournalError):
            self.remove()

    def close(self) -> None:
        """Let go of it; it stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def checked_name(migration_id: object, role: object) -> None:
    """Raises `ProtocolError` for what cannot be the name of a journal."""
    if not isinstance(migration_id, str) or not NAME.fullmatch(f"{migration_id}-{role}"):
        raise ProtocolError(detail=f"{shown(migration_id, 80)} is no migration's id")


def open_directory(directory: Path = DIRECTORY) -> int:
    """A descriptor of the journals' directory, made where there is none. Raises `JournalError`."""
    with as_journal_error(directory):
        private.make(directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(directory, flags)


def own_host(directory: Path = DIRECTORY) -> str:
    """This host's id (`agent.host_id`), "" where it has none. Raises `JournalError`."""
    with as_journal_error(directory / host_id.FILE):
        return host_id.own(directory)


def histories(directory: Path = DIRECTORY) -> Iterator[History]:
    """All journals there are, oldest first, without waiting for anyone. Raises `JournalError`,
    also where one of them cannot be gone by."""
    found, damaged = look(directory)
    if damaged:
        raise damaged[0]
    return iter(found)


def look(directory: Path = DIRECTORY) -> tuple[list[History], list[JournalError]]:
    """All that can be gone by, oldest first, and what is wrong with the others.

    Raises `JournalError` where nothing can be looked at.
    """
    found: list[History] = []
    damaged: list[JournalError] = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return found, damaged
    except OSError as error:
        raise JournalError(path=str(directory), detail=error.strerror or "") from error
    for name in names:
        if match := NAME.fullmatch(name):
            try:
                found.append(read(directory / name, *match.groups()))
            except FileNotFoundError:  # it has ended meanwhile
                continue
            except JournalError as error:
                damaged.append(error)
    return found, damaged


def read(path: Path, migration_id: str, role: str) -> History:
    """One journal. Raises `FileNotFoundError` and `JournalError`."""
    fd = opened(path, os.O_RDONLY)
    try:
        with as_journal_error(path):
            private.check_file(fd)
        return History(migration_id, role, _checked(path, role, contents(fd))[0])
    finally:
        os.close(fd)


def opened(path: Path, how: int) -> int:
    """A descriptor of one. Raises `FileNotFoundError` and `JournalError`."""
    with as_journal_error(path):
        try:
            return os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise private.Exposed(errno.EPERM, "it is a symbolic link") from None
            raise


def _entries(fd: int) -> list[Entry]:
    """What of it can be read while another writes."""
    with contextlib.suppress(Exception):
        return whole_records(contents(fd))[0]
    return []


def _at_work(history: History) -> str:
    """Who holds its lock, in words."""
    pid, state = history.agent
    if not pid:
        return "somebody is at work with its journal"
    stopped = f"is stopped (state {state}): `kill -CONT {pid}`" if state in STOPPED else "lives"
    return f"its agent, PID {pid}, {stopped}"


def _checked(path: Path, role: str, data: bytes) -> tuple[list[Entry], int]:
    """`whole_records`. Raises `JournalDamaged` where they are not all that there was."""
    try:
        entries, end = whole_records(data)
        damage = why_damaged(role, data, entries, end)
    except Exception:  # whole records that are not as this version writes them
        raise JournalDamaged(path=str(path), detail=FOREIGN) from None
    if damage:
        raise JournalDamaged(path=str(path), detail=damage)
    return entries, end


def contents(fd: int) -> bytes:
    """All that a journal's file has, within the limit."""
    return os.pread(fd, min(os.fstat(fd).st_size, LARGEST), 0)


@contextlib.contextmanager
def as_journal_error(path: Path) -> Iterator[None]:
    """What goes wrong with a file, but that it is not there, as a `JournalError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except private.Exposed as error:
        raise JournalExposed(path=str(path), detail=str(error.strerror)) from error
    except OSError as error:
        raise JournalError(path=str(path), detail=error.strerror or str(error)) from error
