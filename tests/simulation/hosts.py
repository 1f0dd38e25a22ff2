"""Simulated hosts: what their kernels hold, what their disks keep, and what one action does there.

A disk keeps what was synced. What was only written survives every process, but of that a crash of
the host leaves no more than a beginning.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.history import Entry, History
from agent.journal import JournalError
from agent.protocol import DESTINATION, SOURCE, Log

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

ID = "20261124-120000-abcdef"
NONE, RUNS, FROZEN, STOPPED = "none", "runs", "frozen", "stopped"
STREAMS = 2  # what the process has


class ActionFailed(Exception):
    """The kernel, or a tool, did not do it."""


class File:
    """A journal on a disk."""

    __slots__ = ("boot", "entries", "synced")

    def __init__(self, boot: int) -> None:
        self.boot = boot  # when it was begun
        self.entries: list[Entry] = []  # as every process on the host reads them
        self.synced = 0  # this many of them are on disk

    def crash(self, torn: float) -> None:
        """The host stopped: of what was not synced a part `torn` (0 to 1) is left."""
        left = round(torn * (len(self.entries) - self.synced))
        del self.entries[self.synced + left :]
        self.synced = len(self.entries)


class Host:
    """One host: `copy`, `locked`, `address` and the streams are its kernel's."""

    __slots__ = (
        "world", "role", "id", "boot", "up", "copy", "locked", "address", "streams", "repair",
        "stuck", "missing", "stranger", "file", "holder", "full", "keeps", "forgetful", "removed",
        "sync_fails", "failing", "processes",
    )  # fmt: skip

    def __init__(self, world: World, role: str) -> None:
        self.world, self.role, self.up = world, role, True
        self.id = f"id of the {role}"  # beside its journals
        self.boot = 1
        self.stranger = False  # another machine answers to its name
        self.file: File | None = None
        self.holder: object = None  # the process that has the journal's lock
        self.full = False  # the disk takes no more records
        self.keeps = False  # no file can be removed
        self.forgetful = False  # a removal cannot be synced
        self.removed: File | None = None  # a journal that is back after a crash
        self.sync_fails = False  # the next decision cannot be synced
        self.failing = 0  # so many actions fail
        self.processes: list[Process] = []
        self.copy, self.locked, self.address = NONE, False, False
        self.streams = 0  # of the copy here
        self.repair = 0  # so many of them are in repair mode, and silent
        self.stuck = False  # the last try to get one out of it failed
        self.missing = False  # memory of the copy here is still at the source
        if role == SOURCE:
            self.copy, self.address, self.streams = RUNS, True, STREAMS

    def restart(self, torn: float) -> None:
        """It crashed: nothing is left but what its disk has."""
        self.boot += 1
        self.copy, self.locked, self.address = NONE, False, False
        self.streams, self.repair, self.stuck, self.missing = 0, 0, False, False
        self.holder = None
        if self.file is None:
            self.file = self.removed
        self.removed = None
        if self.file is not None:
            self.file.crash(torn)

    def history(self) -> History | None:
        """The journal as anyone reads it now."""
        return None if self.file is None else History(ID, self.role, self.file.entries)

    def __str__(self) -> str:
        state = [self.copy]
        state += ["locked"] * self.locked + ["address"] * self.address
        if self.streams:
            state.append(f"{self.repair} of {self.streams} streams in repair mode")
        state += ["memory is missing"] * self.missing
        if self.file is not None:
            names = [one.state or "-" for one in self.file.entries]
            names.insert(self.file.synced, "|")
            state.append(f"journal {' '.join(names)}")
        return ", ".join(state) if self.up else "down"


class Journal:
    """An open, locked journal: what `agent.journal.Journal` is to the real agents."""

    __slots__ = ("host", "file", "end")

    def __init__(self, host: Host, owner: object) -> None:
        """The one that is there, or a new one."""
        if host.file is None:
            if host.full:
                raise OSError(errno.ENOSPC, "the disk is full")
            host.file = File(host.boot)
        self.host, self.file = host, host.file
        self.end = len(self.file.entries)
        host.holder = owner

    @property
    def history(self) -> History:
        return History(ID, self.host.role, self.file.entries[: self.end])

    def record(self, state: str, log: Log, facts: dict[str, Any]) -> None:
        host, file = self.host, self.file
        if host.full:
            raise OSError(errno.ENOSPC, "the disk is full")
        entries = file.entries
        del entries[self.end :]
        entry = Entry(state, host.world.now, facts)
        entries.append(entry)
        if log is Log.DECISION:
            if host.sync_fails:
                host.sync_fails = False
                host.world.cover["fault", "sync fails at", host.role, state] += 1
                if host.world.erases:
                    entries.pop()
                raise OSError(errno.EIO, "the disk failed")
            file.synced = len(entries)
        self.end = len(entries)
        host.world.recorded(host, state, log)

    def remove(self) -> None:
        host = self.host
        self.close()
        if host.keeps:
            host.world.cover["fault", "journal stays", host.role, self.history.state] += 1
            raise JournalError(path="journal", detail="a read-only file system")
        if host.file is self.file:
            host.file = None
            if host.forgetful:
                host.removed = self.file
        if host.forgetful:
            host.world.cover["fault", "removal not synced", host.role, self.history.state] += 1
            raise JournalError(path="journal", detail="the disk failed")

    def close(self) -> None:
        self.host.holder = None


class Successor:
    """Does a dead agent's actions, with what the real one looks for first."""

    __slots__ = ("host", "history")

    def __init__(self, host: Host, history: History) -> None:
        self.host, self.history = host, history

    @property
    def living(self) -> list[int]:
        return [] if self.host.copy == NONE else [7]

    @property
    def same_boot(self) -> bool:
        return self.host.file is not None and self.host.file.boot == self.host.boot

    @property
    def complete(self) -> bool:
        return not self.host.missing

    def do(self, action: str) -> None:
        if action.startswith("say_"):
            return
        gave, took = self.history.entered("handed-over"), self.history.entered("taking-over")
        if action == "take_back_addresses" and (gave is None or not self.living):
            return
        if action == "drop_addresses" and took is None:
            return
        perform(self.host, action)

    def wipe(self) -> None:
        pass


def perform(host: Host, action: str) -> None:
    """One action of the tables on this kernel. Raises `ActionFailed`."""
    world = host.world
    if host.failing:
        host.failing -= 1
        world.cover["fault", "fails", host.role, action] += 1
        world.note(f"{host.role}: {action} fails")
        host.stuck = host.stuck or action in _RELEASES
        raise ActionFailed(action)
    _EFFECTS[host.role][action](host)
    world.changed = True
    if world.trace is not None:
        world.note(f"{host.role}: {action} -> {host}")


def _lock(host: Host) -> None:
    host.locked = True


def _unlock(host: Host) -> None:
    host.locked = False


def _freeze(host: Host) -> None:
    if host.copy == RUNS:
        host.copy = FROZEN


def _ship(host: Host) -> None:
    host.repair = host.streams


def _take(host: Host) -> None:
    host.address = True


def _give(host: Host) -> None:
    host.address = False


def _end_copy(host: Host) -> None:
    host.copy, host.streams, host.repair, host.stuck = NONE, 0, 0, False
    host.missing = False


def _release_stream(host: Host) -> None:
    host.repair, host.stuck = max(host.repair - 1, 0), False


def _release(host: Host) -> None:
    host.repair, host.stuck = 0, False


def _source_thaw(host: Host) -> None:
    if host.copy == FROZEN:
        host.copy = RUNS


def _restore_stream(host: Host) -> None:
    host.streams += 1
    host.repair += 1


def _restore_process(host: Host) -> None:
    host.copy = STOPPED
    host.missing = host.world.post_copy


def _thaw(host: Host) -> None:
    if host.copy == STOPPED:
        host.copy = RUNS


_RELEASES = ("release_stream", "release")
_EFFECTS: dict[str, dict[str, Callable[[Host], None]]] = {
    SOURCE: {
        "lock": _lock,
        "freeze": _freeze,
        "ship": _ship,
        "give_addresses": _give,
        "take_back_addresses": _take,
        "unlock": _unlock,
        "release_stream": _release_stream,
        "release": _release,
        "thaw": _source_thaw,
        "end_copy": _end_copy,
    },
    DESTINATION: {
        "lock": _lock,
        "restore_stream": _restore_stream,
        "restore": _restore_process,
        "take_addresses": _take,
        "drop_addresses": _give,
        "kill": _end_copy,
        "unlock": _unlock,
        "release_stream": _release_stream,
        "release": _release,
        "thaw": _thaw,
    },
}
