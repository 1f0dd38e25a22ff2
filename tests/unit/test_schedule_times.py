"""When runs are due: time zones whose clocks are put forward and back, jitter, windows."""

from __future__ import annotations

import datetime
import itertools
import time
import zoneinfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.playbook.model import Schedule
from orchestrator.scheduling.times import Times

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def times(cron: str, zone: str = "Europe/Berlin", **more: str) -> Times:
    made = Schedule.model_validate({"cron": cron, "time_zone": zone, **more})
    return Times(made, "nightly", "salt")


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def due(cron: str, since: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    made = times(cron, zone)
    return [made.shown(one) for one in itertools.islice(made.after(at(since)), count)]


def test_a_time_that_the_clock_leaves_out_is_due_right_after_the_gap() -> None:
    assert due("30 2 * * *", "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00",
    ]  # fmt: skip
    assert due("0,30 2 * * *", "2026-03-29T01:00+01:00", 2) == [
        "2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00",
    ]  # fmt: skip


def test_a_time_that_the_clock_shows_twice_is_due_once() -> None:
    assert due("30 2 * * *", "2026-10-25T00:00+02:00", 2) == [
        "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00",
    ]  # fmt: skip
    # served anew between the two
    assert due("30 2 * * *", "2026-10-25T02:10+01:00", 1) == ["2026-10-26T02:30:00+01:00"]


def test_what_is_due_at_each_hour_is_so_in_both_that_are_alike_and_not_in_the_gap() -> None:
    assert due("0 * * * *", "2026-10-25T01:30+02:00", 3) == [
        "2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00",
    ]  # fmt: skip
    assert due("0 * * * *", "2026-03-29T00:30+01:00", 2) == [
        "2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00",
    ]  # fmt: skip


CRONS = ["30 2 * * *", "*/20 * * * *", "0 1-3 * * *", "15 */2 * * *", "0 3 * * SUN", "5 2,3 * * *"]
TRICKY = [at("2026-03-28T22:00+01:00"), at("2026-10-24T22:00+02:00"), at("2026-07-01T00:00+02:00")]


@given(
    st.sampled_from(CRONS), st.sampled_from(TRICKY),
    st.lists(st.integers(0, 30 * 3600), min_size=1, max_size=5),
)  # fmt: skip
@example("30 2 * * *", TRICKY[1], [4 * 3600 + 600, 5 * 3600])
def test_it_does_not_matter_since_when_one_has_looked(
    cron: str, begin: float, looks: list[int]
) -> None:
    made = times(cron)
    end = begin + 40 * 3600
    whole = list(itertools.takewhile(lambda one: one <= end, made.after(begin - 86400)))
    assert whole == sorted(set(whole))
    for look in looks:
        since = begin + look
        parts = list(itertools.takewhile(lambda one: one <= end, made.after(since)))
        assert parts == [one for one in whole if one > since]


@given(st.integers(0, 10**6))
def test_the_jitter_of_a_run_is_always_the_same_and_within_its_bound(number: int) -> None:
    made = times("0 3 * * *", jitter="10m")
    moment = at("2026-01-01T03:00+01:00") + number * 86400
    assert made.begin(moment) == times("0 3 * * *", jitter="10m").begin(moment)
    assert moment <= made.begin(moment) < moment + 600


def test_jitters_differ_between_runs_and_stores() -> None:
    made = times("0 3 * * *", jitter="10m")
    days = list(itertools.islice(made.after(0), 50))
    begins = [made.begin(one) - one for one in days]
    assert len(set(begins)) == 50 and min(begins) < 120 and max(begins) > 480
    other = Times(made.schedule, "nightly", "another")
    assert [other.begin(one) - one for one in days] != begins
    plain = times("0 3 * * *")
    assert [plain.begin(one) for one in days] == days


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 29 2 MON", "59 23 31 12 *"])
def test_what_is_rarely_due_is_found_at_once(cron: str) -> None:
    made = times(cron)
    begun = time.process_time()
    for _ in range(10):
        assert made.next(at("2026-01-01T00:00+01:00"))
    assert (time.process_time() - begun) / 10 < 0.05
