"""A source whose destination is hostile: a named error, and the process goes on here unless it was
handed over and the destination says that it has it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import source as module
from agent.conversation import FROM_DESTINATION, MAX_WAITING
from agent.errors import AgentError, FaultInjected, ProtocolError
from agent.image.records import Record
from agent.source import SourceMigration
from tests.support import hostile
from tests.support.fake_hosts import FakeServer, Json, Nothing, ended, fake_hosts
from tests.support.hostile import LINK, nested, scalars

FAILED: Record = {"kind": "failed", "error": FaultInjected(point="restored").to_wire(),
                  "phase": "commit"}  # fmt: skip
RIGHT: dict[str, list[Record]] = {  # answers, by what the source sends
    "ping": [{"kind": "pong", "at": 1.0}],
    "lock": [{"kind": "locked"}],
    "end": [{"kind": "prepared", "pid": 5}],
    "handover": [{"kind": "committed", "at": 1.0}, {"kind": "awake"}],
}
HUNG_UP: Record = {"kind": "", "hang": "up"}
DEEP: Record = {"kind": "failed", "error": {"code": "x", "fields": {"a": nested(1000)}},
                "phase": nested(1000)}  # fmt: skip


class Host(Nothing):
    """The process on the source."""

    def __init__(self, *_: Any) -> None:
        Host.made = self
        self.frozen = self.ended = self.handed_over = False
        self.stopped_before: list[int] = []
        self.about_worker: dict[str, int] = {}
        self.locked_at = 0.0
        self.at_work = False

    made: Host
    ending = ""

    def inventory(self) -> Json:
        return {"connections": [], "families": []}

    def time_waits(self) -> list[Any]:
        return []

    async def hold_new_connections(self) -> None: ...

    async def freeze(self) -> None:
        self.frozen = True

    async def dump_and_ship(self, link: Any, note: Any) -> None:
        link.send({"kind": "end"})

    def locked_out(self) -> list[bytes]:
        self.handed_over = True
        return []

    async def end_process(self) -> None:
        assert self.handed_over, "it was given up for nothing"
        self.ended = True

    async def roll_back(self, actions: Sequence[str]) -> None:
        assert not self.ended
        self.at_work = True
        for _ in range(20):  # it takes a while
            await asyncio.sleep(0)
        self.at_work = False
        if "thaw" in actions:
            self.frozen = False

    def close(self) -> None:
        assert not self.at_work, "closed under the feet of what it is needed for"

    def stream_reports(self) -> list[Json]:
        return []

    def bytes_sent(self) -> Json:
        return {}


class Outcome:
    def __init__(self, report: Json, host: Host) -> None:
        self.outcome = report["outcome"]
        self.error = report["error"]
        self.code = report["error"]["code"] if report["error"] else None
        self.host = host

    def check(self) -> None:
        """One copy at most goes on; none goes on elsewhere that was not handed over."""
        assert self.code != AgentError.code, self.error
        if self.outcome == "migrated":
            assert self.host.ended and self.host.handed_over
        elif self.outcome == "in-doubt":
            assert self.host.frozen and not self.host.ended and self.host.handed_over
        else:
            assert self.outcome == "rolled-back"
            assert not self.host.frozen and not self.host.ended and self.code is not None


async def move(answers: dict[str, list[Record]]) -> Outcome:
    """A source whose destination answers so."""
    with (
        tempfile.TemporaryDirectory() as place,
        fake_hosts(Path(place)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(module, "SourceHost", Host)
        patch.setattr(module, "_WORD_TIMEOUT", 0.2)
        patch.setattr(module, "_LINK_TIMEOUT", 0.2)
        patch.setattr(module, "_LAST_WORD", 0.05)
        server: Any = FakeServer()
        migration = SourceMigration(server)

        def answer(record: Record) -> None:
            for one in answers.get(record["kind"], []):
                if one == HUNG_UP:
                    server.hang_up()
                else:
                    server.say(one)

        server.on_record = answer
        plan = replace(hostile.PLAN, images_dir=f"{place}/images", max_blackout=0.2)
        await migration.prepare(plan.to_wire())
        outcome = Outcome(await ended(asyncio.ensure_future(migration.run(LINK))), Host.made)
        if outcome.outcome == "in-doubt":
            outcome.check()
            for wrong in ("false", 1, None, nested(1000)):
                with pytest.raises(ProtocolError):
                    await migration.resolve(committed=wrong)  # type: ignore[arg-type]
            resolving = asyncio.ensure_future(migration.resolve(committed=False))
            for _ in range(10):  # its steps, not its time
                await asyncio.sleep(0)
            assert Host.made.at_work
            await migration.orchestrator_gone()  # in the middle of it
            await resolving
            assert not outcome.host.frozen and not outcome.host.ended
            outcome.host.frozen = True  # as it was
        with pytest.raises(module.AlreadyRun):
            await migration.run(LINK)
        return outcome


async def test_what_is_right_comes_through() -> None:
    outcome = await move(RIGHT)
    outcome.check()
    assert (outcome.outcome, outcome.code) == ("migrated", None)


ODD = scalars | st.sampled_from([nested(400), {}, {"code": 5}, {"code": "x", "fields": {1: []}}])
words = st.one_of(
    st.sampled_from([one for said in RIGHT.values() for one in said]),
    st.sampled_from([FAILED, DEEP, HUNG_UP, {"kind": "undo"}, {"kind": "x" * 10_000}]),
    st.builds(
        lambda kind, at, more: {"kind": kind, "at": at, "error": more, "phase": more},
        st.sampled_from([*FROM_DESTINATION, "failed"]), ODD, ODD,
    ),
)  # fmt: skip


@settings(hostile.repeatable, max_examples=30)
@given(st.fixed_dictionaries({name: st.just(right) | st.lists(words, min_size=1, max_size=3)
                              for name, right in RIGHT.items()}))  # fmt: skip
def test_words_in_any_order(answers: dict[str, list[Record]]) -> None:
    right = list(RIGHT.values())
    said = {name: one if one in right else [*one, HUNG_UP] for name, one in answers.items()}
    asyncio.run(move(said)).check()


def instead(when: str, *said: Record) -> dict[str, list[Record]]:
    return {**RIGHT, when: list(said)}


CASES: list[tuple[str, dict[str, list[Record]], str, str | None]] = [
    ("committed before the lock",
     instead("lock", {"kind": "committed"}, {"kind": "locked"}), "rolled-back", "protocol"),
    ("committed before the hand-over",
     instead("end", {"kind": "committed"}, {"kind": "prepared"}), "rolled-back", "protocol"),
    ("committed and never prepared",
     instead("end", {"kind": "committed"}), "rolled-back", "blackout-exceeded"),
    ("prepared early",  # it waits, as the table has it
     instead("lock", {"kind": "prepared"}, {"kind": "locked"}), "migrated", None),
    ("failed twice", instead("end", FAILED, FAILED), "rolled-back", "fault"),
    ("failed twice after the hand-over",
     instead("handover", FAILED, FAILED), "rolled-back", "fault"),
    ("failed, then committed",
     instead("handover", FAILED, {"kind": "committed"}), "rolled-back", "fault"),
    ("committed, then failed",
     instead("handover", {"kind": "committed"}, FAILED), "migrated", None),
    ("failed for a deep reason", instead("lock", DEEP), "rolled-back", "x"),
    ("failed for a deep reason after the hand-over", instead("handover", DEEP), "rolled-back", "x"),
    ("gone after the hand-over", instead("handover", HUNG_UP), "in-doubt", "link-lost"),
    ("silent after the hand-over", instead("handover"), "in-doubt", "link-lost"),
    ("unknown after the hand-over",
     instead("handover", {"kind": "??"}), "in-doubt", "protocol"),
    ("a clock that is none", instead("ping", {"kind": "pong"}), "rolled-back", "protocol"),
    ("a clock in words", instead("ping", {"kind": "pong", "at": "1"}), "rolled-back", "protocol"),
    ("a clock without end",
     instead("ping", {"kind": "pong", "at": float("inf")}), "rolled-back", "protocol"),
    ("over and over",
     instead("ping", *RIGHT["ping"] * (MAX_WAITING + 3)), "rolled-back", "protocol"),
    ("over and over, another word",
     instead("lock", *[{"kind": "awake"}] * (MAX_WAITING + 1)), "rolled-back", "protocol"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "outcome", "code"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
async def test_each_has_its_outcome(
    answers: dict[str, list[Record]], outcome: str, code: str | None
) -> None:
    found = await move(answers)
    found.check()
    assert (found.outcome, found.code) == (outcome, code)


async def test_a_second_run_does_not_touch_the_first() -> None:
    with (
        tempfile.TemporaryDirectory() as place,
        fake_hosts(Path(place)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(module, "SourceHost", Host)
        server: Any = FakeServer()
        migration = SourceMigration(server)
        tried = asyncio.Event()
        plan = replace(hostile.PLAN, images_dir=f"{place}/images")

        async def again() -> None:
            with pytest.raises(module.AlreadyRun):
                await migration.run(LINK)
            tried.set()
            for one in RIGHT["handover"]:
                server.say(one)

        tasks: list[asyncio.Task[None]] = []

        def answer(record: Record) -> None:
            if record["kind"] == "handover":  # nothing may be undone any more
                tasks.append(asyncio.create_task(again()))
            else:
                for one in RIGHT.get(record["kind"], []):
                    server.say(one)

        server.on_record = answer
        await migration.prepare(plan.to_wire())
        report = await ended(asyncio.ensure_future(migration.run(LINK)))
        assert tried.is_set() and report["outcome"] == "migrated" and Host.made.ended


async def told_to_connect(link: Any) -> Outcome:
    """A source that is told this about the link, and hears no destination."""
    with (
        tempfile.TemporaryDirectory() as place,
        fake_hosts(Path(place)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(module, "SourceHost", Host)
        server: Any = FakeServer()
        migration = SourceMigration(server)
        await migration.prepare(replace(hostile.PLAN, images_dir=f"{place}/images").to_wire())
        return Outcome(await ended(asyncio.ensure_future(migration.run(link))), Host.made)


@pytest.mark.parametrize(
    "link",
    [None, {}, {**LINK, "port": "x"}, {**LINK, "host_key": "none"}, {**LINK, "host_id": "x"}],
)
async def test_nowhere_to_connect_to(link: Any) -> None:
    outcome = await told_to_connect(link)
    outcome.check()
    assert (outcome.outcome, outcome.code) == ("rolled-back", "protocol")


async def test_a_process_that_has_ended_meanwhile_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Host, "ending", "was killed by SIGKILL")
    outcome = await told_to_connect({})
    assert (outcome.outcome, outcome.code) == ("rolled-back", "copy-ended")
