"""A destination whose source is hostile: a named error, all undone, and never a copy that runs.

The keys of the link are used once, so such a source is one of ours that has been taken over.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import destination as module
from agent import destination_host
from agent.destination import DestinationMigration
from agent.errors import AgentError, FaultInjected
from agent.host import MAX_SOCKETS
from agent.image.records import Record
from agent.image.streams import stream_records
from agent.kernel import uapi
from agent.memory.store import MAX_RUNS
from agent.plan import Address
from agent.tcp.stream import Stream
from agent.tcp.time_wait import MAX_TIME_WAITS
from tests.support import hostile
from tests.support.fake_hosts import Copy, FakeServer, Json, ended, fake_hosts
from tests.support.hostile import HOST_ID, KEY, nested, spoilt, values
from tests.unit.test_records import raw

LOCAL, REMOTE = "10.9.0.1", "10.9.0.2"
STREAM = Stream(
    5, 2, uapi.TCP_ESTABLISHED, (LOCAL, 80), (REMOTE, 40000),
    send_queue=b"abc", unsent=1, mss=1460, window=(1, 2, 3, 4, 5),
)  # fmt: skip
LISTENER = Stream(1, 2, uapi.TCP_LISTEN, (LOCAL, 1), ("", 0))
CONNECTION = [4, LOCAL, 80, REMOTE, 40000]
LOCK: Record = {"kind": "lock", "connections": [CONNECTION], "families": [2]}
TIME_WAITS: Record = {
    "kind": "time_waits", "rows": [[4, LOCAL, 80, REMOTE, 40001, 10, 20, 30, 40]],
}  # fmt: skip
FRESH: Record = {"kind": "connections", "connections": [[4, LOCAL, 80, REMOTE, 40002]]}
STREAMS = list(stream_records([STREAM]))
PAGES: Record = {
    "kind": "pages", "pid": 5000, "runs": [[0x10000, 2, 1], [0x20000, 4, 0]],
    "data": bytes(range(256)) * 32,
}  # fmt: skip
QUEUE: Record = {"kind": "queue", "inode": 5, "queue": "send", "data": b"abc"}
FILE: Record = {"kind": "file", "files": [["core-1.img", b"x"]]}
END: Record = {"kind": "end"}
HANDOVER: Record = {"kind": "handover", "packets": [bytes(60)], "stopped": [1]}
UNDO: Record = {"kind": "undo", "error": FaultInjected(point="ship").to_wire()}
SYNC: list[Record] = [
    {"op": "begin", "pass": "first", "parents": [["/tmp/streamferry-hostile", 0o777, 0, 0]]},
    {"op": "data", "data": b"x"}, {"op": "compare", "files": []}, {"op": "end"}, {"op": "drop"},
]  # fmt: skip
RIGHT = [
    {"kind": "ping"}, PAGES, LOCK, TIME_WAITS, FRESH, PAGES, QUEUE, *STREAMS, FILE, END, HANDOVER,
]  # fmt: skip
OTHERS = [UNDO, {"kind": "packets", "packets": []}, {"kind": "bye"}, {"kind": "committed"},
          {"kind": ""}, {"kind": "__class__"}, {"kind": "x" * 10_000}]  # fmt: skip


class Outcome:
    """What became of a migration, and what is left."""

    def __init__(self, report: Json, left: list[str], tables: set[str], heard: list[Record]):
        self.report = report
        self.outcome = report["outcome"]
        self.code = report["error"]["code"] if report["error"] else None
        self.left = left
        self.tables = tables
        self.heard = heard

    def check(self) -> None:
        assert self.tables == set()
        assert self.code != AgentError.code, self.report["error"]
        if self.outcome == "migrated":
            assert Copy.runs
            return
        assert self.outcome == "rolled-back"
        assert self.code is not None and not Copy.exists and not Copy.runs
        assert self.left == []


async def tell(*said: Record | bytes, gone: bool = True) -> Outcome:
    """A destination that hears all of this and then, unless told not, that the source is gone."""
    with tempfile.TemporaryDirectory() as place:
        with fake_hosts(Path(place, "journal")) as locks:
            server: Any = FakeServer()
            migration = DestinationMigration(server)
            plan = replace(
                hostile.PLAN,
                images_dir=f"{place}/images",
                addresses=(Address(LOCAL, 24, 4, "lo", "lo"),),
                memory=0,
            )
            await migration.prepare(plan.to_wire(), KEY, HOST_ID)
            run = asyncio.ensure_future(migration.run())
            for one in said:
                if isinstance(one, bytes):
                    server.say_bytes(one)
                else:
                    server.say(one)
                for _ in range(12):
                    await asyncio.sleep(0)
            if gone:
                server.hang_up()
            report = await ended(run)
            left = hostile.left_in(Path(place))
            await asyncio.sleep(0)
            return Outcome(report, left, locks.tables, server.heard)


async def test_what_is_right_comes_through() -> None:
    """Else the others would show nothing."""
    outcome = await tell(*RIGHT)
    outcome.check()
    assert (outcome.outcome, outcome.code) == ("migrated", None)


records = st.sampled_from([*RIGHT, *OTHERS])


@settings(hostile.repeatable, max_examples=40)
@given(st.lists(records, max_size=8))
def test_records_in_any_order(said: list[Record]) -> None:
    outcome = asyncio.run(tell(*said))
    outcome.check()
    assert outcome.outcome == "rolled-back", "that was no whole migration"


@st.composite
def one_wrong(draw: st.DrawFn) -> list[Record]:
    """All that is right, in which one record is not."""
    said = list(RIGHT)
    at = draw(st.integers(0, len(said) - 1))
    record = draw(spoilt({key: one for key, one in said[at].items() if key != "kind"}))
    if not isinstance(record, dict):
        record = {"rows": record}
    said[at] = {**record, "kind": said[at]["kind"]}
    return said


@settings(hostile.repeatable, max_examples=70)
@given(one_wrong())
def test_one_record_with_something_wrong_in_it(said: list[Record]) -> None:
    asyncio.run(tell(*said)).check()


@settings(hostile.repeatable, max_examples=20)
@given(st.lists(records, max_size=4), st.binary(min_size=1, max_size=100))
def test_bytes_that_are_no_record(said: list[Record], data: bytes) -> None:
    outcome = asyncio.run(tell(*said, data))
    outcome.check()
    assert outcome.outcome == "rolled-back"


@settings(hostile.repeatable, max_examples=20)
@given(values)
def test_an_undo_with_whatever_reason(error: Any) -> None:
    outcome = asyncio.run(tell(LOCK, {"kind": "undo", "error": error}))
    assert outcome.outcome == "rolled-back" and outcome.tables == set() and outcome.left == []


UP_TO_END = [LOCK, FRESH, *STREAMS, FILE]
NAMES = ["..", "../x.img", "/etc/x.img", "a/b.img", "a\0.img", "x" * 5000 + ".img", ".img",
         "restore.log", "é.img"]  # fmt: skip


def many_pages(at: int) -> Record:
    """4 MiB at an address of their own."""
    runs = [[0x1000_0000 * (at + 1), 1024, 1], [0x10_0000_0000, 1 << 20, 0]]
    return {**PAGES, "runs": runs, "data": bytes(range(256)) * (16 << 10)}


BAD_PAGES: list[tuple[str, Record, str]] = [
    ("of no process", {"pid": None}, "protocol"),
    ("of a process with a path", {"pid": "../../etc/shadow"}, "protocol"),
    ("of a process that cannot be", {"pid": 1 << 40}, "protocol"),
    ("of a part of a process", {"pid": 5.0}, "protocol"),
    ("without runs", {"runs": None}, "protocol"),
    ("of runs without end", {"runs": [[0, 1, 0]] * (MAX_RUNS + 1), "data": b""}, "protocol"),
    ("of a run of text", {"runs": ["abc"]}, "protocol"),
    ("at half an address", {"runs": [[0x10001, 2, 1]]}, "protocol"),
    ("below memory", {"runs": [[-0x1000, 2, 1]]}, "protocol"),
    ("beyond memory", {"runs": [[1 << 63, 2, 1]]}, "protocol"),
    ("without number", {"runs": [[0x10000, 1 << 63, 1]]}, "protocol"),
    ("of no number", {"runs": [[0x10000, 0, 1]]}, "protocol"),
    ("with less data", {"data": bytes(0x1FFF)}, "protocol"),
    ("with more data", {"data": bytes(0x2001)}, "protocol"),
    ("with data that is none", {"data": "x" * 0x2000}, "protocol"),
]
DEEP = {"code": "x", "fields": {"a": nested(1000)}}
WRONG: list[tuple[str, list[Record], str]] = [
    *[(f"file {one[:12]!r}", [LOCK, {"kind": "file", "files": [[one, b"x"]]}], "image")
      for one in NAMES],
    ("more than the limit",
     [LOCK, *[{"kind": "file", "files": [["a.img", bytes(7 << 20)]]}] * 3], "image-too-large"),
    *[(f"unplanned files: {one['op']}", [{"kind": "sync", **one}], "protocol")
      for one in SYNC],
    ("twice locked", [LOCK, LOCK], "protocol"),
    ("streams before the lock", STREAMS, "protocol"),
    ("a listener before the lock",
     [{"kind": "streams", "streams": [LISTENER.to_wire()]}],
     "protocol"),
    ("files before the lock", [FILE], "protocol"),
    ("an end before the lock", [END], "protocol"),
    ("a hand-over before the lock", [HANDOVER], "protocol"),
    ("a hand-over before the end", [*UP_TO_END, HANDOVER], "protocol"),
    ("a file after the end", [*UP_TO_END, END, FILE], "protocol"),
    ("a stream after the end", [*UP_TO_END, END, *STREAMS], "protocol"),
    ("a lock after the end", [*UP_TO_END, END, LOCK], "protocol"),
    ("TIME_WAIT twice", [LOCK, TIME_WAITS, TIME_WAITS], "protocol"),
    ("TIME_WAIT without end",
     [LOCK, {**TIME_WAITS, "rows": TIME_WAITS["rows"] * (MAX_TIME_WAITS + 1)}], "protocol"),
    ("families without end", [{**LOCK, "families": [2] * (MAX_SOCKETS + 1)}], "protocol"),
    ("connections without end",
     [{**LOCK, "connections": [0] * (MAX_SOCKETS + 1)}], "protocol"),
    *[(f"pages {name}, {when} the lock", [*before, {**PAGES, **over}], code)
      for when, before in (("before", []), ("after", [LOCK]))
      for name, over, code in BAD_PAGES],
    ("pages without end", [many_pages(at) for at in range(6)], "image-too-large"),
    ("pages without end after the lock",
     [LOCK, *(many_pages(at) for at in range(6))], "image-too-large"),
    ("pages of more and more processes",
     [{**many_pages(0), "pid": pid} for pid in range(1, 7)], "image-too-large"),
    ("pages after the end", [*UP_TO_END, END, PAGES], "protocol"),
    ("the lock, and pages in place of the rest", [LOCK, PAGES, HANDOVER], "protocol"),
    ("nft in an address",
     [{**LOCK, "connections": [[4, "1.1.1.1 }\nflush ruleset", 1, REMOTE, 2]]}], "protocol"),
    ("a family of 4.0", [{**LOCK, "connections": [[4.0, LOCAL, 1, REMOTE, 2]]}], "protocol"),
    ("a socket of 2.0", [{**LOCK, "families": [2.0]}], "protocol"),
    ("a stream not announced", [{**LOCK, "connections": []}, *STREAMS], "protocol"),
    ("a piece of no queue", [LOCK, {**QUEUE, "queue": "other"}], "protocol"),
    ("undone for a deep reason", [LOCK, {"kind": "undo", "error": DEEP}], "x"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "code"), [case[1:] for case in WRONG],
                         ids=[case[0] for case in WRONG])  # fmt: skip
async def test_each_has_its_name_and_the_source_is_told(
    said: list[Record], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_host, "_ROOM", 20 << 20)
    outcome = await tell(*said, gone=False)
    outcome.check()
    assert (outcome.outcome, outcome.code) == ("rolled-back", code)
    assert outcome.heard[-1]["kind"] == "failed"


async def test_pages_of_more_processes_than_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_many(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("agent.memory.store.PageStores._file", too_many)
    outcome = await tell(PAGES, gone=False)
    outcome.check()
    assert outcome.code == "images-directory"


async def test_a_map_with_a_list_as_a_key() -> None:
    outcome = await tell(raw(b"\x82\xa4kind\xa1x\x90\x01"), gone=False)
    outcome.check()
    assert outcome.code == "image"


async def test_one_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has logged in, and holds the link."""
    monkeypatch.setattr(module, "_LOCK_TIMEOUT", 0.1)
    with tempfile.TemporaryDirectory() as place, fake_hosts(Path(place, "journal")):
        server: Any = FakeServer()
        migration = DestinationMigration(server)
        plan = replace(hostile.PLAN, images_dir=f"{place}/images")
        await migration.prepare(plan.to_wire(), KEY, HOST_ID)
        run = asyncio.ensure_future(migration.run())
        server.say({"kind": "ping"})
        report = await ended(run)
        assert (report["outcome"], report["error"]["code"]) == ("rolled-back", "link-lost")


async def test_pages_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be on its way for longer than any silence may be; the guardian is told."""
    monkeypatch.setattr(module, "_LOCK_TIMEOUT", 1.0)
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as place, fake_hosts(Path(place, "journal")):
        server: Any = FakeServer()
        migration = DestinationMigration(server)
        plan = replace(hostile.PLAN, images_dir=f"{place}/images")
        await migration.prepare(plan.to_wire(), KEY, HOST_ID)
        journal = migration._custody.journal
        notes: list[float] = []
        monkeypatch.setattr(journal, "note", lambda **_: notes.append(loop.time()))
        run = asyncio.ensure_future(migration.run())
        begin = loop.time()
        while loop.time() < begin + 2.5:
            server.say({**PAGES, "runs": [], "data": b""})
            await asyncio.sleep(0.01)
            assert not run.done(), run.result()
        assert 1 <= len(notes) <= 2
        report = await ended(run)  # which now hears nothing
        assert (report["outcome"], report["error"]["code"]) == ("rolled-back", "link-lost")


async def test_a_second_run_does_not_touch_the_first() -> None:
    with tempfile.TemporaryDirectory() as place, fake_hosts(Path(place, "journal")):
        server: Any = FakeServer()
        migration = DestinationMigration(server)
        plan = replace(hostile.PLAN, images_dir=f"{place}/images")
        await migration.prepare(plan.to_wire(), KEY, HOST_ID)
        run = asyncio.ensure_future(migration.run())
        server.say({"kind": "ping"})
        await asyncio.sleep(0)
        with pytest.raises(module.AlreadyRun):
            await migration.run()
        assert not run.done()
        server.hang_up()
        await ended(run)
        with pytest.raises(module.AlreadyRun):
            await migration.run()
