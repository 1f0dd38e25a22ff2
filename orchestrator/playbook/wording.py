"""What pydantic finds wrong with a file, in words for a person, with a fix. Pure."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agent.errors import shown
from orchestrator.playbook.rules import meant
from orchestrator.playbook.values import FORMS
from orchestrator.playbook.yaml_source import Path as Place

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
}
_HOW = {
    "bool_type": "Write true or false, without quotes.",
    "list_type": "Write [ONE, OTHER], or each in a line of its own, with a dash before it.",
}
_LENGTHS = {"string_too_long": "characters", "too_long": "entries"}


@dataclass(frozen=True, slots=True)
class Worded:
    """What is wrong at a place; `key`: with the key there, not with its value."""

    place: Place
    message: str
    hint: str
    key: bool = False


def worded(one: ErrorDetails, model: type[BaseModel]) -> Worded:
    """Of what was found when `model` was read."""
    place: Place = tuple(one["loc"])
    of_key = bool(place) and place[-1] == "[key]"  # of a map whose keys are free
    place = place[:-1] if of_key else place
    if one["type"] == "extra_forbidden":
        known = _keys(model, place[:-1])
        hint = meant(str(place[-1]), known) or f"The keys are: {', '.join(known)}."
        return Worded(place, f"there is no key `{place[-1]}` here", hint, True)
    if one["type"] == "missing":
        hint = _about(model, place)
        return Worded(place[:-1], f"the key `{place[-1]}` is missing", hint)
    message, hint = _said(one)
    if one["type"] == "model_type":
        hint = f"The keys are: {', '.join(_keys(model, place))}."
    elif message.endswith("is empty") and (name := _optional(model, place)):
        hint = f"Give one, or leave `{name}` out. {_about(model, place)}"
    return Worded(place, message, hint or _about(model, place), of_key)


def _said(one: ErrorDetails) -> tuple[str, str]:
    """(what is wrong, a hint where the schema has none that is better)."""
    kind, given, context = one["type"], one["input"], one.get("ctx", {})
    if kind in _TYPES:
        hint = _HOW.get(kind, "")
        if kind == "string_type" and isinstance(given, bool | int | float):
            hint = f'Quote it: "{_kind(given)}".'
        return f"this must be {_TYPES[kind]}, not {_kind(given)}", hint
    if kind == "literal_error":
        choices = [
            one.strip("'") for one in str(context["expected"]).replace(" or ", ", ").split(", ")
        ]
        return f"{_kind(given)} is not one of {', '.join(choices)}", meant(str(given), choices)
    if kind == "value_error":
        return str(context.get("error", one["msg"])), ""
    if kind in ("string_too_short", "too_short") or given == "":
        what = {"[]": "the list", "{}": "the map"}.get(repr(given), "this")
        return f"{what} is empty", ""
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"{shown(given)} is not {FORMS.get(pattern, f'of the form {pattern}')}", ""
    if kind in _LENGTHS:
        length = len(given) if isinstance(given, str | list | dict) else "more"
        return f"this has {length} {_LENGTHS[kind]}, and {context['max_length']} are allowed", ""
    if kind == "greater_than_equal":
        return f"{shown(given)} is too small: it is at least {context['ge']}", ""
    if kind == "less_than_equal":
        return f"{shown(given)} is too large: it is at most {context['le']}", ""
    return f"{shown(given)}: {one['msg'].removeprefix('Input ').replace('should', 'must')}", ""


def _kind(given: object) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, dict | list):
        return "a map" if isinstance(given, dict) else "a list"
    return shown(given)


# --- what the schema says of a place


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that there are at a place."""
    shape = _down(model, place)[-1][0] if place else model
    return list(shape.model_fields) if _is_model(shape) else []


def _about(model: type[BaseModel], place: Place) -> str:
    """What is meant to stand there: "`port`: A TCP port that it listens on."."""
    said = ""
    for (_, field), part in zip(_down(model, place), place, strict=False):
        said = f"`{part}`: {field.description}" if field is not None else said
    return said


def _optional(model: type[BaseModel], place: Place) -> str:
    """The name of what stands there, where it may as well be left out; else ""."""
    field = _down(model, place)[-1][1] if place else None
    return str(place[-1]) if field is not None and not field.is_required() else ""


def _down(model: type[BaseModel], place: Place) -> list[tuple[Any, FieldInfo | None]]:
    """What stands at each step of the way there, and the field that it is the value of."""
    steps: list[tuple[Any, FieldInfo | None]] = []
    shape: Any = model
    for part in place:
        if _is_model(shape):
            field = shape.model_fields.get(part)
            shape = _plain(field.annotation) if field is not None else None
        else:
            arguments = typing.get_args(shape)
            field, shape = None, _plain(arguments[-1]) if arguments else None
        steps.append((shape, field))
    return steps


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
