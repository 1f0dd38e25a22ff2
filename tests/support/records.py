"""Records of migrations: whole ones, and every kind that is damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.migration import result as results
from tests.wire.scripted_agent import (
    DESTINATION_ID,
    SOURCE_ID,
    destination_report,
    source_report,
)

ID = "20261124-120000-abcdef"
OTHER = "20261124-110000-000000"


def full(migration: str, **over: Any) -> dict[str, Any]:
    """A result with all that a migration has."""
    result = results.empty(migration, "src", "dst", 5000)
    result["outcome"] = "migrated"
    results.merge(result, source_report(), destination_report())
    return {**result, **over}


def whole(**over: Any) -> dict[str, Any]:
    """A record that nobody has ended."""
    return {
        "id": ID, "source": "src", "destination": "dst", "pid": 5000,
        "source_id": SOURCE_ID, "destination_id": DESTINATION_ID, "ssh_config": None,
        "begun": "2026-11-24T12:00:00+0000", "result": None, **over,
    }  # fmt: skip


def _case(name: str, value: object, why: str) -> Any:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return pytest.param(content, why, id=name)


def _ended(**over: Any) -> dict[str, Any]:
    return whole(result=full(ID, **over))


def _without(name: str) -> dict[str, Any]:
    return {key: one for key, one in _ended().items() if key != name}


_ERROR = {"code": "fault", "message": "m", "hint": "h", "phase": "ship"}
_STREAM = full(ID)["streams"][0]
_TEXT = json.dumps(_ended()).encode()

# (content, part of what is said about it)
DAMAGED = [
    _case("empty", b"", "it is empty"),
    _case("zeros", bytes(4096), "there is nothing in it"),
    _case("blanks", b" \n", "there is nothing in it"),
    _case("garbage", b"\x93NUMPY\xff\x00", "it is not JSON"),
    _case("other text", b"hello", "it is not JSON"),
    *[_case(f"cut at {at}", _TEXT[:at], "it is not JSON")
      for at in (1, 20, len(_TEXT) // 2, len(_TEXT) - 1)],
    _case("twice", _TEXT + _TEXT, "it is not JSON"),
    _case("deep lists", b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
    _case("deep maps", b'{"result":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    _case("endless number", b'{"pid": ' + b"9" * 5000 + b"}", "it is not JSON"),
    *[_case(f"a {type(one).__name__}", one, "is not a record") for one in ([], "text", 5, None)],
    _case("an empty map", {}, "not of the shape"),
    *[_case(f"without {name}", _without(name), name if name != "result" else "not a result")
      for name in whole() if not name.endswith("_id")],
    *[_case(f"{name} is {type(odd).__name__}", {**whole(), name: odd}, f"record.{name}")
      for name in ("id", "source", "destination", "pid", "begun")
      for odd in (None, [], {}, 1.5, True)],
    *[_case(f"{name} is {odd!r}"[:40], whole(**{name: odd}), why)
      for name in ("source_id", "destination_id")
      for odd, why in ((None, f"record.{name}"), (5, f"record.{name}"), ("me", "no host's id"))],
    _case("ssh_config is a number", whole(ssh_config=5), "record.ssh_config"),
    _case("of another", whole(id=OTHER), "it is of migration"),
    _case("its result is of another", whole(result=full(OTHER)), "it is of migration"),
    *[_case(f"PID {pid}", whole(pid=pid), "is not a PID") for pid in (0, -1, 1 << 40)],
    _case("PID of any size", whole(pid=10**400), "not a number"),
    _case("no host", whole(source=""), "is not a host name"),
    _case("an option as host", whole(destination="-oProxyCommand=x"), "is not a host name"),
    *[_case(f"result is {type(odd).__name__}", whole(result=odd), "is not a result")
      for odd in ([], "migrated", 5, True)],
    _case("empty result", whole(result={}), "in its result"),
    _case("an outcome that is none", _ended(outcome="martian"), "no outcome is named"),
    *[_case(f"{name} is {odd!r}"[:40], _ended(**{name: odd}), f"its result.{name}")
      for name, values in {
          "outcome": [None, 5, []],
          "error": [5, "text", {}, {**_ERROR, "hint": None}],
          "blackout_ms": ["41", None, {}, float("nan"), float("inf"), 10**400],
          "clock_error_ms": [None],
          "phases_ms": [None, [], {"check": "long"}, {"check": float("nan")}],
          "streams": [None, {}, "none", [5], [{}], [{**_STREAM, "wake_ms": "soon"}],
                      [{**_STREAM, "local": 5}]],
          "replayed_packets": [None, 1.5],
          "bytes": [None, {}, {"memory": 1, "streams": 1, "files": "many"}],
          "pid": ["5000"],
          "recovered": [1, "yes"],
      }.items() for odd in values],
]  # fmt: skip
