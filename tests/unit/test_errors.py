"""Every error class: complete where it is raised, and the same words after the wire."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import errors
from agent.errors import AgentError, Cancelled, Foreign, PeerLost, ProtocolError
from agent.wire.frames import FrameDecoder, encode
from orchestrator.errors import from_wire, load_error_classes

ROOT = Path(__file__).resolve().parents[2]

load_error_classes()
CLASSES = sorted({AgentError, *AgentError._registry.values()} - {Foreign}, key=lambda cls: cls.code)


def needed(cls: type[AgentError]) -> set[str]:
    """The fields that the words of a class name."""
    parts = [*Formatter().parse(cls.template), *Formatter().parse(cls.hint_template)]
    return {name for _, name, _, _ in parts if name}


def across(message: dict[str, Any]) -> dict[str, Any]:
    (received,) = FrameDecoder().feed(encode(message))
    return received


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_the_same_after_the_wire(cls: type[AgentError]) -> None:
    error = cls(**{name: f"<{name}>" for name in needed(cls)})
    received = from_wire(across({"error": error.to_wire()})["error"])
    assert type(received) is cls
    assert received.fields == error.fields
    assert received.message == error.message == str(error)
    assert received.hint == error.hint
    assert all(f"<{name}>" in error.message + error.hint for name in needed(cls))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_says_what_and_what_to_do(cls: type[AgentError]) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.code)
    assert cls.template and cls.hint_template
    assert cls.exit_status in (
        errors.EXIT_ROLLED_BACK,
        errors.EXIT_USAGE,
        errors.EXIT_REFUSED,
        errors.EXIT_IN_DOUBT,
    )


def raised() -> Iterator[tuple[str, type[AgentError], ast.Call]]:
    """Every place where an error is made: "file:line", its class and the call."""
    classes = {cls.__name__: cls for cls in CLASSES}
    for path in [*ROOT.glob("agent/**/*.py"), *ROOT.glob("orchestrator/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if cls := classes.get(node.func.id):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", cls, node


def test_every_error_is_given_what_its_words_need() -> None:
    seen = set()
    for where, cls, call in raised():
        seen.add(cls)
        assert not call.args, where
        names = {keyword.arg for keyword in call.keywords}
        if None not in names:  # a ** is not looked into
            assert needed(cls) <= names, where
    assert len(seen) > 30


def test_names_are_not_used_twice() -> None:
    with pytest.raises(TypeError, match="used twice"):
        type("Again", (AgentError,), {"code": "link-lost"})
    names = [cls.__name__ for cls in CLASSES]
    assert len(names) == len(set(names))


def test_an_unknown_class_passes_on_as_it_came() -> None:
    wire = {"code": "of-a-newer-version", "fields": {"path": "/x", "size": 3}}
    error = from_wire(wire)
    assert isinstance(error, Foreign)
    assert error.to_wire() == wire
    assert "of-a-newer-version" in error.message and "/x" in error.message


def test_a_class_of_the_agent_is_loaded_when_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(AgentError._registry)
    monkeypatch.setattr(AgentError, "_registry", {"link-lost": PeerLost})
    monkeypatch.setattr(
        "orchestrator.errors.load_error_classes", lambda: AgentError._registry.update(known)
    )
    received = from_wire({"code": "cancelled", "fields": {"phase": "lock"}})
    assert isinstance(received, Cancelled)


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        "text",
        {},
        {"code": "cancelled"},
        {"code": "cancelled", "fields": None},
        {"code": "cancelled", "fields": []},
        {"code": "cancelled", "fields": {}},
        {"code": "cancelled", "fields": {"self": 1}},
        {"code": ["cancelled"], "fields": {}},
        {"code": None, "fields": {}},
        {"code": "foreign", "fields": {"detail": "x"}},
        {"fields": {"phase": "lock"}},
    ],
    ids=repr,
)
def test_a_malformed_error_is_still_an_error(wire: object) -> None:
    error = from_wire(wire)
    assert type(error) is ProtocolError
    assert "cannot be read" in error.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.sampled_from([cls.code for cls in CLASSES]) | VALUES, VALUES)
def test_whatever_comes_is_an_error_with_words(code: Any, fields: Any) -> None:
    error = from_wire({"code": code, "fields": fields})
    assert isinstance(error, AgentError)
    assert isinstance(error.message, str) and isinstance(error.hint, str)
