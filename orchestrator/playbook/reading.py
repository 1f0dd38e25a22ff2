"""From a file to a checked playbook or inventory, or to all that is wrong with it."""

from __future__ import annotations

import os
import stat
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.errors import EXIT_USAGE, AgentError, shown
from orchestrator.playbook import rules
from orchestrator.playbook.model import Hosts, Playbook
from orchestrator.playbook.rules import meant
from orchestrator.playbook.yaml_source import MAX_BYTES, TOO_LARGE, Problem, Source, read
from orchestrator.playbook.yaml_source import Path as Place

_T = TypeVar("_T", bound=BaseModel)

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
}


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
    problems: list[Problem] = field(default_factory=list)

    def place(self, one: Problem) -> str:
        """ "FILE:LINE:COLUMN: PATH", as far as it is known."""
        where = f"{self.path}:{one.line}:{one.column}" if one.line else self.path
        return f"{where}: {one.path}" if one.path else where

    def error(self) -> PlaybookInvalid:
        """For the JSON of other verbs."""
        first, more = self.problems[0], len(self.problems) - 1
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
        checked.problems = sorted(rules.problems(checked.value, source, hosts))
        if checked.problems:
            checked.value = None
    return checked


def read_hosts(path: str) -> Checked[Hosts]:
    """Never raises."""
    return _read(path, Hosts)[0]


def text_of(path: str) -> str:
    """What a file says. Waits for no pipe, and reads no more than a playbook may have.

    Raises `ValueError` in words for a person.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(TOO_LARGE)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not text (UTF-8)") from None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read(path: str, model: type[_T]) -> tuple[Checked[_T], Source]:
    try:
        text = text_of(path)
    except ValueError as error:
        return Checked(path, None, [Problem(0, 0, "", str(error))]), Source()
    source = read(text)
    if source.problems:
        return Checked(path, None, sorted(source.problems)), source
    try:
        return Checked(path, model.model_validate(source.value)), source
    except ValidationError as error:
        found = {_problem(one, source, model) for one in error.errors(include_url=False)}
        return Checked(path, None, sorted(found)), source


def _problem(one: ErrorDetails, source: Source, model: type[BaseModel]) -> Problem:
    """What pydantic found, in words that name the fix."""
    place: Place = tuple(one["loc"])
    kind, given = one["type"], one["input"]
    context: dict[str, Any] = one.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        return source.problem(
            place,
            f"there is no key `{place[-1]}` here",
            meant(str(place[-1]), known) or f"The keys are: {', '.join(known)}.",
            key=True,
        )
    if kind == "missing":
        return source.problem(place[:-1], f"the key `{place[-1]}` is missing")
    if kind in _TYPES:
        said, hint = f"this must be {_TYPES[kind]}, not {_kind(given)}", ""
        if kind == "string_type" and isinstance(given, int | float):
            hint = f'Quote it: "{given}".'
        return source.problem(place, said, hint)
    if kind == "literal_error":
        choices = _choices(str(context.get("expected", "")))
        said = f"{shown(given)} is not one of {', '.join(choices)}"
        return source.problem(place, said, meant(str(given), choices))
    if kind == "value_error":
        return source.problem(place, str(context.get("error", one["msg"])))
    if kind == "string_pattern_mismatch":
        return source.problem(place, f"{shown(given)} is not of the form {context['pattern']}")
    said = one["msg"].removeprefix("Input ").replace("should", "must")
    return source.problem(place, f"{shown(given)}: {said}")


def _kind(given: object) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, dict | list):
        return "a map" if isinstance(given, dict) else "a list"
    return shown(given)


def _choices(expected: str) -> list[str]:
    return [one.strip("'") for one in expected.replace(" or ", ", ").split(", ")]


def _fields_at(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that the model has at a place."""
    shape: Any = model
    for part in place:
        shape = _within(shape, part)
    shape = _plain(shape)
    return list(shape.model_fields) if _is_model(shape) else []


def _within(shape: Any, part: str | int) -> Any:
    shape = _plain(shape)
    if _is_model(shape):
        known = shape.model_fields.get(part)
        return known.annotation if known is not None else None
    arguments = typing.get_args(shape)
    return arguments[-1] if arguments else None


def _plain(shape: Any) -> Any:
    """Without Annotated, and without the None of an optional."""
    while True:
        origin = typing.get_origin(shape)
        if origin is typing.Annotated:
            shape = typing.get_args(shape)[0]
        elif origin in (typing.Union, types.UnionType):
            shape = next(one for one in typing.get_args(shape) if one is not type(None))
        else:
            return shape


def _is_model(shape: Any) -> bool:
    return isinstance(shape, type) and issubclass(shape, BaseModel)
