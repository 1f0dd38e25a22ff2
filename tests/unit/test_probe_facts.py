"""The shapes of facts, the reading of build-ids, and what CRIU is asked: all without rights."""

from __future__ import annotations

import copy
import math
import os
import struct
from pathlib import Path
from typing import Any, TypedDict

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.criu import worker
from agent.errors import AgentError, ProtocolError, from_wire
from agent.probe import capabilities, criu, elf, errors, files
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate
from tests.support.facts import Case, bound, obstacle

CASE = Case()
CASE.process["obstacles"].append(obstacle("terminal", path="/dev/pts/0"))
CASE.process["bound"].append(bound("0.0.0.0"))
SHAPES: list[tuple[Any, Any]] = [
    (CASE.source, HostFacts),
    (CASE.process, ProcessFacts),
    (CASE.found, DestinationFacts),
]


@pytest.mark.parametrize(("facts", "shape"), SHAPES, ids=lambda one: getattr(one, "__name__", ""))
def test_facts_cross_the_wire(facts: Any, shape: Any) -> None:
    assert validate(msgpack.unpackb(msgpack.packb(facts)), shape, "facts") == facts


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) in nested facts."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places(inner)
    return found


class Numbers(TypedDict):
    count: int
    ms: int | float
    by_name: dict[str, float | str]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, 10**400], ids=repr)
@pytest.mark.parametrize("place", ["count", "ms", "by_name"])
def test_a_number_that_cannot_be_reckoned_with_is_refused(place: str, bad: Any) -> None:
    good: dict[str, Any] = {"count": 1, "ms": 2.5, "by_name": {"a": 0.5, "b": "c"}}
    assert validate(good, Numbers, "facts") == good
    odd = {**good, place: {"a": bad} if place == "by_name" else bad}
    with pytest.raises(ProtocolError, match="in facts"):
        validate(odd, Numbers, "facts")


@pytest.mark.parametrize(("facts", "shape"), SHAPES, ids=lambda one: getattr(one, "__name__", ""))
@pytest.mark.parametrize("bad", [{"odd": []}, b"bytes", 1.5, [[None]]])
def test_a_wrong_value_anywhere_is_refused(facts: Any, shape: Any, bad: Any) -> None:
    sent = msgpack.unpackb(msgpack.packb(facts))
    for container, key in places(sent):
        if isinstance(container, dict) and key in ("thing", "path") and bad == 1.5:
            continue  # a field of an obstacle may be a number
        good, container[key] = container[key], bad
        with pytest.raises(ProtocolError, match="in facts"):
            validate(sent, shape, "facts")
        container[key] = good
    assert validate(sent, shape, "facts") == facts


def test_a_field_too_few_or_too_many() -> None:
    facts = copy.deepcopy(CASE.source)
    facts["new"] = 1  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ProtocolError, match="'new'"):
        validate(facts, HostFacts, "facts")
    del facts["new"], facts["kernel"]  # type: ignore[typeddict-item, misc]
    with pytest.raises(ProtocolError, match="'kernel'"):
        validate(facts, HostFacts, "facts")


def program(notes: bytes, *, order: str = "<", wide: bool = True, align: int = 4) -> bytes:
    """A small ELF file with one PT_NOTE segment."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    if wide:
        rest = struct.pack(order + "HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack(order + "IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), 0, align)
    else:
        rest = struct.pack(order + "HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        segment = struct.pack(order + "8I", 4, 84, 0, 0, len(notes), 0, 4, align)
    return ident + rest + segment + notes


def note(kind: int, name: bytes, data: bytes, order: str = "<", align: int = 4) -> bytes:
    head = struct.pack(order + "III", len(name), len(data), kind) + name
    head += bytes(-len(head) % align)
    return head + data + bytes(-len(data) % align)


def read(path: Path, content: bytes) -> bytes | None:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return elf.build_id(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("align", [4, 8])
def test_build_id(tmp_path: Path, order: str, wide: bool, align: int) -> None:
    notes = note(5, b"GNU\0", b"property", order, align) + note(1, b"Go\0\0", b"x", order, align)
    wanted = note(3, b"GNU\0", bytes(range(20)), order, align)
    content = program(notes + wanted, order=order, wide=wide, align=align)
    assert read(tmp_path / "file", content) == bytes(range(20))
    assert read(tmp_path / "file", program(notes, order=order, wide=wide, align=align)) == b""


def test_no_elf(tmp_path: Path) -> None:
    assert read(tmp_path / "file", b"#!/bin/sh\n") is None
    assert read(tmp_path / "file", b"") is None


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=20))
def test_nonsense_has_no_build_id(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, place: int, patch: bytes
) -> None:
    content = bytearray(program(note(3, b"GNU\0", b"id") + tail))
    content[place : place + len(patch)] = patch
    found = read(tmp_path_factory.getbasetemp() / "nonsense", bytes(content))
    assert found is None or len(found) <= 64


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_criu_facts(tmp_path: Path) -> None:
    assert criu.look(None) == {"path": None, "version": None, "problem": None}
    good = script(tmp_path / "good", '[ $1 = --version ] && echo "Version: 4.2.1"; exit 0')
    assert criu.look(good) == {"path": good, "version": [4, 2, 1], "problem": None}
    bad = script(
        tmp_path / "bad",
        '[ $1 = --version ] && echo "Version: 4.1" && exit 0\n'
        'echo "Error (criu/cr-check.c:1): no way"; echo "Error (b:2): more"; exit 1',
    )
    assert criu.look(bad) == {"path": bad, "version": [4, 1], "problem": "no way"}
    odd = script(tmp_path / "odd", "echo what; exit 5")
    assert criu.look(odd)["version"] is None
    assert "what" in str(criu.look(odd)["problem"])
    assert criu.look(str(tmp_path))["problem"]


def test_capabilities() -> None:
    assert capabilities.missing((1 << 41) - 1) == []
    assert capabilities.missing(0) == list(capabilities.NEEDED)
    assert capabilities.names(1 << 21 | 1 << 24 | 1 << 45) == [
        "CAP_SYS_ADMIN",
        "CAP_SYS_RESOURCE",
        "capability 45",
    ]
    assert capabilities.NAMES.index("CAP_CHECKPOINT_RESTORE") == 40


def test_the_limit_of_deleted_files_is_that_of_the_dump() -> None:
    assert files.GHOST_LIMIT == worker._GHOST_LIMIT


@pytest.mark.parametrize(
    "error",
    [
        errors.NoSuchProcess(pid=7),
        errors.NotAProcess(pid=8, process=7),
        errors.KernelThread(pid=2, comm="kthreadd"),
        errors.AgentItself(pid=1, comm="init"),
        errors.Zombie(pid=9, comm="cat"),
        errors.NotPermitted(pid=9, detail="no"),
    ],
)
def test_errors_cross_the_wire(error: AgentError) -> None:
    received = from_wire(msgpack.unpackb(msgpack.packb(error.to_wire())))
    assert type(received) is type(error)
    assert received.message == error.message and str(error.fields["pid"]) in error.message
    assert received.exit_status == 3
