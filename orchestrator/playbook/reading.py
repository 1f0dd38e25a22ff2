"""From a file to a checked playbook or inventory, or to all that is wrong with it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from agent.errors import EXIT_USAGE, AgentError
from orchestrator.playbook import rules
from orchestrator.playbook.model import Hosts, Playbook
from orchestrator.playbook.wording import Worded, worded
from orchestrator.playbook.yaml_source import MAX_BYTES, TOO_LARGE, Problem, Source, read

_T = TypeVar("_T", bound=BaseModel)

MAX_PROBLEMS = 20  # that are told of a file: who has mended those reads the next
_MAX_FOUND = 200  # by the rules, which look for what was meant


class PlaybookInvalid(AgentError):
    """The first of what is wrong with a file, for a report of one line."""

    code = "playbook-invalid"
    template = "{place}: {detail}{more}"
    hint_template = "{hint}"
    exit_status = EXIT_USAGE


@dataclass(slots=True)
class Checked(Generic[_T]):
    """A file: what it says, or what is wrong with it (never both)."""

    path: str
    value: _T | None = None
    problems: list[Problem] = field(default_factory=list)  # the first ones
    more: int = 0  # that there are at least
    hosts: str | None = None  # the inventory that a playbook names, whatever is wrong with it

    def place(self, one: Problem) -> str:
        """ "FILE:LINE:COLUMN: PATH", as far as it is known."""
        where = f"{self.path}:{one.line}:{one.column}" if one.line else self.path or "''"
        return f"{where}: {one.path}" if one.path else where

    def error(self) -> PlaybookInvalid:
        """For the JSON of other verbs."""
        first, more = self.problems[0], len(self.problems) - 1 + self.more
        return PlaybookInvalid(
            place=self.place(first),
            detail=first.message,
            more=f" (and {more} more; see `migrate playbook check`)" if more else "",
            hint=first.hint or "See docs/playbooks.md.",
        )


def read_playbook(path: str, hosts: rules.KnownHosts | None = None) -> Checked[Playbook]:
    """Never raises. `hosts`: those that may be named; without, any may."""
    checked, source = _read(path, Playbook)
    if checked.value is not None:
        found = islice(rules.problems(checked.value, source, hosts), _MAX_FOUND)
        named = checked.value.hosts
        if problems := list(found):
            checked = _wrong(path, problems)
        checked.hosts = named
    return checked


def read_hosts(path: str) -> Checked[Hosts]:
    """Never raises."""
    return _read(path, Hosts)[0]


def text_of(path: str) -> str:
    """What a file says. Waits for no pipe, and reads no more than a playbook may have.

    Raises `ValueError`, with what is wrong and a hint, in words for a person.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is not the name of a file", "Name a file.")
    try:
        with open(path, "rb", opener=_at_once) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_BYTES + 1) if regular else b""
    except OSError as error:
        hint = "Name a file that this user may read."
        raise ValueError(f"it cannot be read: {error.strerror or error}", hint) from None
    if not regular:
        raise ValueError("it is not a regular file", "Name a file.")
    if len(data) > MAX_BYTES:
        raise ValueError(TOO_LARGE, "Make several files of it.")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not text (UTF-8)", "Write it as UTF-8.") from None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read(path: str, model: type[_T]) -> tuple[Checked[_T], Source]:
    try:
        text = text_of(path)
    except ValueError as error:
        return _wrong(path, [Problem(0, 0, "", *error.args)]), Source()
    source = read(text)
    if source.problems:
        return _wrong(path, source.problems), source
    if (other := _other(source, model)) is not None:
        return _wrong(path, [other]), source
    try:
        return Checked(path, model.model_validate(source.value)), source
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = nsmallest(MAX_PROBLEMS, found, lambda one: source.problem(tuple(one["loc"]), ""))
        problems = {_problem(worded(one, model), source) for one in first}
        return _wrong(path, list(problems), len(found) - len(first)), source


def _other(source: Source, model: type[BaseModel]) -> Problem | None:
    """Where an inventory is read as a playbook, or the other way around."""
    names = {"playbook", "inventory"} & set(source.value if isinstance(source.value, dict) else ())
    mine = "playbook" if model is Playbook else "inventory"
    if not names or mine in names:
        return None
    (name,) = names
    hint = "A playbook names it (`hosts:`); or --hosts does." if mine == "playbook" else (
        "Name the file that begins with `inventory: 1`."
    )  # fmt: skip
    article = {"playbook": "a playbook", "inventory": "an inventory"}
    return source.problem((name,), f"this is {article[name]}, not {article[mine]}", hint, key=True)


def _problem(said: Worded, source: Source) -> Problem:
    return source.problem(said.place, said.message, said.hint, key=said.key)


def _wrong(path: str, problems: list[Problem], more: int = 0) -> Checked[Any]:
    first = sorted(problems)[:MAX_PROBLEMS]
    return Checked(path, None, first, len(problems) - len(first) + more)
