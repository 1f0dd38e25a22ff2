"""When another round is worth it, and what is sent in one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent import source, source_host
from agent.bandwidth import Bandwidth
from agent.custody import Custody
from agent.image.records import CHUNK, MAX_BODY, RecordDecoder, RecordEncoder
from agent.memory import ahead as module
from agent.memory.ahead import Ahead, DirtiesTooFast, MappedTooLarge, Round, another, too_fast
from agent.memory.reader import SPAN, Changes
from agent.memory.store import MAX_RUNS
from agent.plan import POST_COPY, PRE_COPY, STOP
from agent.source_host import SourceHost
from tests.support.memory import PAGE, page, pages

MIB = 1 << 20


def rounds(*mebibytes: float) -> list[Round]:
    return [Round(int(one * MIB), 1.0) for one in mebibytes]


@pytest.mark.parametrize(("sent", "most", "more"), [
    ((), 1, True),
    ((1000,), 1, False),  # no more than that
    ((1000,), 8, True),  # nothing to compare it with
    ((8.1,), 8, True),
    ((8,), 8, False),  # so little is sent in the blackout
    ((0,), 8, False),
    ((1000, 700), 8, True),
    ((1000, 701), 8, False),  # it shrinks no more
    ((1000, 1200), 8, False),
    ((1000, 100, 50), 8, True),
    ((1000, 100, 50), 3, False),
    ((1000, 100, 90), 8, False),
    ((1000, 100, 5), 8, False),
])  # fmt: skip
def test_whether_another_round_is_worth_it(sent: tuple[float, ...], most: int, more: bool) -> None:
    assert another(rounds(*sent), most) is more


def test_there_is_an_end_whatever_is_sent() -> None:
    for shrinks in (0.0, 0.5, 0.69, 0.71, 1.0, 2.0):
        size, done = 1e15, rounds()
        while another(done, 100):
            done.append(Round(int(size), 1.0))
            size *= shrinks
        assert 1 <= len(done) <= 100


class FakeLink:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.drained = 0

    def send(self, record: dict[str, Any]) -> int:
        pieces = RecordEncoder().encode(record)
        assert all(len(piece) <= MAX_BODY for piece in pieces)
        self.records.append(record)
        return sum(map(len, pieces))

    async def drain(self) -> None:
        self.drained += 1


class FakeReader:
    """Its changes come from the test, a list of spans for each look."""

    script: dict[int, list[list[Changes] | OSError]] = {}

    tracked = True

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self._looks = self.script[pid]
        self.pidfd = pidfd
        self.lasts: list[bool] = []

    def changes(self, *, last: bool) -> Iterator[Changes]:
        self.lasts.append(last)
        look = self._looks.pop(0)
        if isinstance(look, OSError):
            raise look
        yield from look


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> FakeLink:
    monkeypatch.setattr(module, "MemoryReader", FakeReader)
    monkeypatch.setattr(module, "anonymous", lambda pid: [])
    return FakeLink()


def span(first: int, count: int, data: bool = True) -> Changes:
    changes = Changes()
    changes.add(first * PAGE, count, memoryview(pages(first, count)) if data else None)
    return changes


def joined(link: FakeLink) -> tuple[list[list[int]], bytes]:
    return (
        [run for record in link.records for run in record["runs"]],
        b"".join(record["data"] for record in link.records),
    )


async def test_small_changes_go_together_large_ones_do_not(link: FakeLink) -> None:
    FakeReader.script = {1: [[
        span(0, 1), Changes(), span(600, 2, data=False), span(700, 3), span(1024, SPAN // PAGE),
        span(2048, 1),
    ]]}  # fmt: skip
    done: list[int] = []
    ahead = Ahead(link, done.append, Bandwidth(0))  # type: ignore[arg-type]
    sent = await ahead.round({1: 11})
    assert [len(record["runs"]) for record in link.records] == [4, 1]
    assert {(one["kind"], one["pid"]) for one in link.records} == {("pages", 1)}
    runs, data = joined(link)
    assert runs == [[0, 1, 1], [600 * PAGE, 2, 0], [700 * PAGE, 3, 1],
                    [1024 * PAGE, 512, 1], [2048 * PAGE, 1, 1]]  # fmt: skip
    assert data == page(0) + pages(700, 3) + pages(1024, 512) + page(2048)
    assert sent.bytes == ahead.sent == len(data) and sent.ms >= 0
    assert link.drained == 2 and done == [len(data) - PAGE, len(data)]
    assert ahead.report() == [{"bytes": len(data), "ms": sent.ms}]


async def test_nothing_has_changed(link: FakeLink) -> None:
    FakeReader.script = {1: [[Changes()] * 100]}
    assert (await Ahead(link, lambda _: None, Bandwidth(0)).round({1: 11})).bytes == 0  # type: ignore[arg-type]
    assert link.records == []


async def test_no_record_has_too_many_runs(link: FakeLink) -> None:
    scattered = Changes()
    for number in range(0, SPAN // PAGE, 2):
        scattered.add(number * PAGE, 1, None)
    FakeReader.script = {1: [[scattered] * 300]}
    await Ahead(link, lambda _: None, Bandwidth(0)).round({1: 11})  # type: ignore[arg-type]
    assert sum(len(record["runs"]) for record in link.records) == 300 * 256
    assert len(link.records) > 1
    assert max(len(record["runs"]) for record in link.records) <= MAX_RUNS


async def test_no_record_is_too_large(link: FakeLink) -> None:
    """The most there can be: nearly a chunk is waiting, and a whole span comes."""
    FakeReader.script = {1: [[span(0, CHUNK // PAGE - 1), span(512, 512)]]}
    await Ahead(link, lambda _: None, Bandwidth(0)).round({1: 11})  # type: ignore[arg-type]
    (record,) = link.records
    whole = b"".join(b"".join(RecordEncoder().encode(record)) for _ in range(1))
    assert list(RecordDecoder().feed(whole)) == [record]


async def test_silence_is_not_for_long(link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle process may have so much memory that looking at it takes a minute."""
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def slowly() -> Iterator[Changes]:
        for _ in range(60):
            clock[0] += 1.0
            yield Changes()

    FakeReader.script = {1: [slowly()]}  # type: ignore[list-item]
    called: list[int] = []
    await Ahead(link, called.append, Bandwidth(0)).round({1: 11})  # type: ignore[arg-type]
    assert len(link.records) == len(called) == 10
    assert all(record["runs"] == [] and record["data"] == b"" for record in link.records)


async def test_processes_that_come_and_go(link: FakeLink) -> None:
    """Each keeps what was sent of it; one that has ended is passed over."""
    FakeReader.script = {
        1: [[span(0, 1)], [span(1, 1)]],
        2: [ProcessLookupError(3, "No such process")],
        3: [[span(5, 1)], FileNotFoundError(2, "No such file")],
    }
    ahead = Ahead(link, lambda _: None, Bandwidth(0))  # type: ignore[arg-type]
    await ahead.round({1: 11, 2: 12})
    await ahead.round({1: 11, 3: 13})
    FakeReader.script[1].append([])
    await ahead.round({1: 11, 3: 13})
    assert [(one["pid"], one["runs"]) for one in link.records] == [
        (1, [[0, 1, 1]]), (1, [[PAGE, 1, 1]]), (3, [[5 * PAGE, 1, 1]]),
    ]  # fmt: skip
    assert [one.bytes for one in ahead.rounds] == [PAGE, 2 * PAGE, 0]


async def test_who_runs_is_tracked_who_stands_still_is_not(link: FakeLink) -> None:
    """In the last round a process may be new: it cannot be made to open anything any more."""
    FakeReader.script = {1: [[], []], 2: [[]]}
    ahead = Ahead(link, lambda _: None, Bandwidth(0))  # type: ignore[arg-type]
    await ahead.round({1: 11})
    await ahead.round({1: 11, 2: 12}, last=True)
    readers: Any = ahead._readers
    assert {pid: (one.pidfd, one.lasts) for pid, one in readers.items()} == {
        1: (11, [False, True]), 2: (None, [True]),
    }  # fmt: skip


async def test_what_may_not_be_read_is_no_end_of_a_process(link: FakeLink) -> None:
    FakeReader.script = {1: [PermissionError(13, "Permission denied")]}
    with pytest.raises(PermissionError):
        await Ahead(link, lambda _: None, Bandwidth(0)).round({1: 11})  # type: ignore[arg-type]


def test_what_would_stand_still_for_too_long_is_not_frozen() -> None:
    all_of_it, fits, not_so = Round(800 << 20, 9000.0), Round(50 << 20, 999.0), Round(1, 1001.0)
    for rounds in ([], [all_of_it], [all_of_it, fits], [all_of_it, not_so, fits]):
        assert too_fast(rounds, 1.0) is None
    held = Round(700 << 20, 8123.0, held_ms=7200.0)  # by a bandwidth
    assert too_fast([all_of_it, held], 1.0) is None
    error = too_fast([all_of_it, fits, Round(700 << 20, 8123.0)], 1.0)
    assert error is not None and "700 MiB" in error.message and "8.1 s" in error.message
    assert "post-copy" in error.hint


@pytest.mark.parametrize(("gib", "may_follow", "mode"), [
    (1024, True, STOP), (1024, False, None), (20, True, PRE_COPY), (20, False, PRE_COPY),
])  # fmt: skip
async def test_who_has_too_much_mapped_goes_at_once(
    link: FakeLink, monkeypatch: pytest.MonkeyPatch, gib: int, may_follow: bool, mode: str | None
) -> None:
    monkeypatch.setattr(module, "anonymous", lambda pid: [(0, gib << 30)])
    FakeReader.script = {1: [[]]}
    host = host_with(memory_mode=PRE_COPY, max_rounds=1, max_blackout=3, may_follow=may_follow)
    monkeypatch.setattr(host, "_start_worker", lambda: None)
    monkeypatch.setattr(source_host, "worth", lambda pids: True)
    monkeypatch.setattr(source_host.seccomp, "filtered", lambda pids: False)
    with contextlib.nullcontext() if mode else pytest.raises(MappedTooLarge, match="1024 GiB"):
        await host.copy_ahead(link, lambda: None)
    assert host.memory_mode == (mode or PRE_COPY)
    assert (host._ahead is not None) == host._hiding == (mode == PRE_COPY)


@pytest.mark.parametrize(("limit", "may_follow", "mode"), [
    (9.0, True, PRE_COPY), (9.0, False, PRE_COPY), (0.5, True, POST_COPY), (0.5, False, None),
])  # fmt: skip
async def test_what_changes_too_fast_follows_where_it_may(
    link: FakeLink, monkeypatch: pytest.MonkeyPatch, limit: float, may_follow: bool,
    mode: str | None,
) -> None:  # fmt: skip
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def slowly() -> Iterator[Changes]:
        clock[0] += 1.0
        for number in range(5):  # more than would be sent as fast in the blackout
            yield span(number * 512, 512)

    FakeReader.script = {1: [slowly(), slowly()]}  # type: ignore[list-item]
    host = host_with(memory_mode=PRE_COPY, max_rounds=2, max_blackout=limit, may_follow=may_follow)
    with pytest.raises(DirtiesTooFast) if mode is None else contextlib.nullcontext():
        await host.copy_ahead(link, lambda: None)
    assert host.memory_mode == (mode or PRE_COPY)


def host_with(**plan: Any) -> Any:
    """A source of one process, and of nothing that `copy_ahead` does not need."""
    host: Any = object.__new__(SourceHost)
    host._plan = SimpleNamespace(memory=1 << 30, bandwidth=0, **plan)
    host.memory_mode = plan["memory_mode"]
    host._ahead, host._hiding = None, False
    host._tree = SimpleNamespace(refresh=lambda: None, pidfds={1: 11}, pids=[1])
    host._opened = SimpleNamespace(callback=lambda _: None)
    host._send_event = lambda name, data: None
    return host


async def test_the_guardian_is_told_while_a_round_takes_long(
    link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes an agent that is at one thing for three minutes for hung, and kills it."""
    clock, notes, told = [1000.0], [], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def slowly() -> Iterator[Changes]:
        for number in range(600):
            clock[0] += 1.0
            yield span(512 * number, 512) if number % 100 == 0 else Changes()

    FakeReader.script = {1: [slowly()]}  # type: ignore[list-item]
    custody: Any = object.__new__(Custody)
    custody._noted = 0.0
    custody.journal = SimpleNamespace(note=lambda: notes.append(clock[0]))
    host = host_with(memory_mode=PRE_COPY, max_rounds=1, max_blackout=9, may_follow=False)
    host._send_event = lambda name, data: told.append(data["done"])
    await host.copy_ahead(link, lambda: custody.gets_on(source._NOTE_EVERY))
    gaps = [after - before for before, after in itertools.pairwise([1000.0, *notes, clock[0]])]
    assert notes and max(gaps) < 60
    assert len(notes) < 50, "each is a write to the disk"
    assert told[-1] == 6 * SPAN and host.rounds() == [{"bytes": 6 * SPAN, "ms": 600_000.0}]


async def test_a_bandwidth_holds_up_what_goes_ahead_and_not_the_last(link: FakeLink) -> None:
    class Noted(Bandwidth):
        async def spend(self, size: int) -> None:
            spent.append(size)

    spent: list[int] = []
    FakeReader.script = {1: [[span(0, 100), span(512, 100)], [span(0, 300)]]}
    ahead = Ahead(link, lambda _: None, Noted(MIB))  # type: ignore[arg-type]
    await ahead.round({1: 11})
    assert len(spent) == len(link.records) == 1 and spent[0] > 200 * PAGE
    await ahead.round({1: 11}, last=True)
    assert len(spent) == 1 and len(link.records) == 2
