"""A rate is kept, whatever the sizes, and what was not used is not saved up."""

from __future__ import annotations

import asyncio

import pytest

from agent.bandwidth import Bandwidth

MB = 10**6


class Clock:
    """The loop's time, which sleep moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept = 0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("size", [1, 1000, MB, 8 * MB])
async def test_the_rate_is_kept(size: int, clock: Clock) -> None:
    bandwidth = Bandwidth(10 * MB)
    begin = clock.now
    for _ in range(200):
        await bandwidth.spend(size)
    taken = 200 * size / (10 * MB)
    assert taken - max(0.06, size / (9 * MB)) <= clock.now - begin <= taken + 0.001


async def test_time_that_sending_takes_counts(clock: Clock) -> None:
    """At half of the rate, nothing is held up."""
    bandwidth = Bandwidth(10 * MB)
    for _ in range(50):
        clock.now += 0.2
        await bandwidth.spend(MB)
    assert clock.slept == 0


async def test_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    bandwidth = Bandwidth(10 * MB)
    await bandwidth.spend(MB)
    clock.now += 3600
    begin = clock.now
    for _ in range(10):
        await bandwidth.spend(MB)
    assert clock.now - begin > 0.89


async def test_without_a_rate_nothing_waits(clock: Clock) -> None:
    for _ in range(10):
        await Bandwidth(0).spend(1 << 40)
    assert clock.slept == 0
