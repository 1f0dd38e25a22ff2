"""The playbooks that are served: files, and those of directories that have a schedule.

They are looked at again and again. What is run is always what is there then: one that has become
wrong is not run in its former shape, and one that is gone not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.playbook.model import Playbook, Schedule
from orchestrator.playbook.reading import PlaybookInvalid, read_playbook, text_of
from orchestrator.playbook.yaml_source import read
from orchestrator.scheduling.errors import NothingScheduled, SameName

_ENDINGS = (".yaml", ".yml")
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Book:
    """A file as it is now. `schedule` is None where it is wrong, or has none any more."""

    name: str
    path: str
    schedule: Schedule | None = None
    digest: str = ""
    drains: tuple[str, ...] = ()  # the nodes
    problem: PlaybookInvalid | None = None


def digest_of(playbook: Playbook) -> str:
    """What it says, in short: of another playbook it is another."""
    return hashlib.sha256(playbook.model_dump_json().encode()).hexdigest()


def name_of(path: str) -> str:
    return Path(path).stem


def read_book(path: str) -> Book:
    """Whether its hosts are known is asked when it is run. Never raises."""
    checked = read_playbook(path)
    if checked.value is None:
        return Book(name_of(path), path, problem=checked.error())
    nodes = tuple(one.node for one in checked.value.drains)
    digest = digest_of(checked.value)
    return Book(name_of(path), path, checked.value.schedule, digest, nodes)


class Books:
    """Those of the files and directories that were named."""

    def __init__(self, named: Iterable[str]) -> None:
        self._named = [os.path.abspath(one) for one in named]
        self._read: dict[str, tuple[_Stamp, Book]] = {}

    def first(self) -> list[Book]:
        """As `now`, but what cannot be served at all is refused.

        Raises `NothingScheduled`, `SameName`, `PlaybookInvalid`.
        """
        for path in self._named:
            if not os.path.lexists(path):
                raise NothingScheduled(path=path, detail="there is no such file or directory")
            if not os.access(path, os.R_OK):
                raise NothingScheduled(path=path, detail="it cannot be read")
        books = self.now()
        seen: dict[str, str] = {}
        for book in books:
            if book.name in seen:
                raise SameName(first=seen[book.name], second=book.path, name=book.name)
            seen[book.name] = book.path
        right = [one.path for one in books if one.problem is None]
        if not right and (wrong := next((one.problem for one in books if one.problem), None)):
            raise wrong
        for path in self._named:
            if os.path.isdir(path):
                if not any(one.startswith(f"{path}{os.sep}") for one in seen.values()):
                    raise NothingScheduled(path=path, detail="no playbook in it has a schedule")
            elif path not in seen.values():
                raise NothingScheduled(path=path, detail="the playbook has no schedule")
        return books

    def now(self) -> list[Book]:
        """Those that have a schedule, and those that are wrong; each name once. Never raises."""
        found: dict[str, Book] = {}
        for path in self._files():
            if (book := self._look(path)) is not None:
                found.setdefault(book.path, book)
        return list(found.values())

    def _files(self) -> Iterator[str]:
        for path in self._named:
            if os.path.isdir(path):
                try:
                    names = sorted(os.listdir(path))
                except OSError:
                    continue
                yield from (os.path.join(path, one) for one in names if one.endswith(_ENDINGS))
            else:
                yield path

    def _look(self, path: str) -> Book | None:
        """None where there is none, or it has no schedule."""
        try:
            found = os.stat(path)
        except OSError:
            self._read.pop(path, None)
            return None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read_book(path))
        book = known[1]
        if book.problem is not None:
            return book if path in self._named or _meant(path) else None
        return book if book.schedule is not None else None


def _meant(path: str) -> bool:
    """Whether a file of a directory that is wrong is a playbook with a schedule: an inventory
    is no playbook, and others are none of ours."""
    try:
        text = text_of(path)
    except ValueError:
        return False
    value = read(text).value
    return "schedule:" in text if value is None else isinstance(value, dict) and "schedule" in value
