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

from agent.errors import internal
from orchestrator.playbook.model import Playbook, Schedule
from orchestrator.playbook.reading import PlaybookInvalid, read_playbook, text_of
from orchestrator.playbook.yaml_source import read
from orchestrator.scheduling.errors import NothingScheduled, SameName

_ENDINGS = (".yaml", ".yml")
_Stamp = tuple[int, int, int, int]


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
    try:
        return _read_book(path)
    except Exception as error:  # a fault of ours with one file must not end those of the others
        detail = internal(error).message
        wrong = PlaybookInvalid(place=path, detail=detail, more="", hint="Report this fault.")
        return Book(name_of(path), path, problem=wrong)


def _read_book(path: str) -> Book:
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
        self._read: dict[str, tuple[_Stamp, Book, bool]] = {}
        self._served: set[str] = set()  # those that are, right or wrong, until they are gone

    def served_before(self, paths: Iterable[str]) -> None:
        """By an earlier server: where one of them is wrong now, it was meant to be served."""
        self._served.update(paths)

    def first(self) -> list[Book]:
        """As `now`, but what cannot be served at all is refused.

        Raises `NothingScheduled`, `SameName`, `PlaybookInvalid`.
        """
        for path in self._named:
            if not _is_text(path):
                raise NothingScheduled(path=ascii(path), detail="its name is not UTF-8")
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
            try:
                names = sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                yield path
            except OSError:  # nothing is gone for that
                yield from [one for one in self._read if path in (one, os.path.dirname(one))]
            else:
                # What is not UTF-8 can be neither said nor written down.
                yield from (
                    os.path.join(path, one)
                    for one in names
                    if one.endswith(_ENDINGS) and _is_text(one)
                )

    def _look(self, path: str) -> Book | None:
        """None where there is none, or it has no schedule."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._read.pop(path, None)
            self._served.discard(path)
            return None
        except OSError:
            book = read_book(path)  # it says why it cannot be looked at
            meant = book.schedule is not None
        else:
            stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                book = read_book(path)
                meant = _meant(path) if book.problem is not None else book.schedule is not None
                known = self._read[path] = (stamp, book, meant)
            _, book, meant = known
        # An emptied one, or one that was cut off, does not show any more what it was.
        known_as_ours = path in self._named or path in self._served
        if meant or (book.problem is not None and known_as_ours):
            self._served.add(path)
            return book
        self._served.discard(path)
        return None


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _meant(path: str) -> bool:
    """Whether a file of a directory that is wrong is a playbook with a schedule: an inventory
    is no playbook, and others are none of ours."""
    try:
        text = text_of(path)
        value = read(text).value
    except Exception:  # as above
        return False
    return "schedule:" in text if value is None else isinstance(value, dict) and "schedule" in value
