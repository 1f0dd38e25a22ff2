"""A destination to which files were planned, and a source that says something else about them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from agent.errors import AgentError, ProtocolError
from agent.image.records import Record
from agent.sync.destination import SyncDestination
from agent.sync.paths import MAX_PATHS
from tests.support import hostile
from tests.support.hostile import PLAN, spoilt
from tests.support.sync import joined

BEGIN: Record = {"kind": "sync", "op": "begin", "pass": "first", "parents": []}
PARENT = ["/srv/streamferry-hostile", 0o755, 0, 0]
FILE = {
    "path": "/etc/hostname", "kind": "file", "size": 1, "mode": 0o100644, "mtime_ns": 0,
    "build_id": "", "digest": "", "written": False, "pid": 1, "use": "mapped",
}  # fmt: skip
WRONG: list[tuple[str, list[Record]]] = [
    ("data before the beginning", [{"op": "data", "data": b"x"}]),
    ("an end before the beginning", [{"op": "end"}]),
    ("no operation", [{}]),
    ("an operation that is none", [{"op": "delete"}]),
    ("data that is none", [{"op": "data", "data": "x"}]),
    ("a pass that is none", [{**BEGIN, "pass": "--delete"}]),
    ("no parents", [{**BEGIN, "parents": None}]),
    ("parents without end", [{**BEGIN, "parents": [PARENT] * (16 * MAX_PATHS + 1)}]),
    ("a parent of no mode", [{**BEGIN, "parents": [["/srv", "rwx", 0, 0]]}]),
    ("a parent of a mode too large", [{**BEGIN, "parents": [["/srv", 1 << 20, 0, 0]]}]),
    ("a parent of nobody", [{**BEGIN, "parents": [["/srv", 0o755, -1, 0]]}]),
    ("files to compare that are none", [{"op": "compare", "files": [{"path": "/etc/shadow"}]}]),
    ("no files to compare", [{"op": "compare", "files": 5}]),
    ("files to compare without end", [{"op": "compare", "files": [FILE] * (16 * MAX_PATHS + 1)}]),
]


async def tell(place: Path, said: list[Record]) -> list[Record]:
    """What the destination answers."""
    ours, theirs = joined()
    plan = replace(PLAN, sync_dirs=(str(place / "planned"),))
    destination = SyncDestination(plan, theirs, lambda: None)
    try:
        for one in said:
            await destination.take({"kind": "sync", **one})
        await asyncio.sleep(0)
    finally:
        destination.close()
    answers: list[Record] = []
    while (one := ours.queued("sync")) is not None:
        answers.append(await ours.receive())
    return answers


@pytest.mark.parametrize(("what", "said"), WRONG, ids=[one[0] for one in WRONG])
async def test_what_is_wrong_is_refused_and_nothing_made(
    tmp_path: Path, what: str, said: list[Record]
) -> None:
    with pytest.raises(ProtocolError):
        await tell(tmp_path, said)
    assert list(tmp_path.iterdir()) == []


async def test_what_is_right(tmp_path: Path) -> None:
    """Else the others would show nothing."""
    answers = await tell(tmp_path, [{"op": "compare", "files": [FILE]}])
    assert [one["op"] for one in answers] == ["compared"] and answers[0]["problems"]


async def test_directories_are_made_for_the_plan_alone(tmp_path: Path) -> None:
    rows = [[str(tmp_path / name), 0o700, 0, 0] for name in ("planned", "other")]
    await tell(tmp_path, [{**BEGIN, "parents": rows}])
    assert [one.name for one in tmp_path.iterdir()] == ["planned"]


async def test_not_twice_at_once(tmp_path: Path) -> None:
    begin = {**BEGIN, "parents": [[str(tmp_path / "planned"), 0o700, 0, 0]]}
    with pytest.raises(ProtocolError):
        await tell(tmp_path, [begin, begin])


@settings(hostile.repeatable, max_examples=40)
@given(spoilt({**BEGIN, "parents": [PARENT], "files": [FILE]}))
def test_something_wrong_in_it(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    if not isinstance(record, dict):
        record = {"op": record}
    place = tmp_path_factory.mktemp("sync")
    try:
        asyncio.run(tell(place, [record]))
    except AgentError as error:
        assert error.code != AgentError.code
    assert list(place.iterdir()) == []
