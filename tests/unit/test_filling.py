"""How long an interrupted fill is tried again."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator import filling
from orchestrator.filling import Patience


async def test_it_is_tried_again_for_as_long_as_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "AGAIN", (0.0, 0.001))
    monkeypatch.setattr(filling, "PATIENCE", 0.05)
    patience = Patience(asyncio.Event())
    for left in range(20, 0, -1):
        await asyncio.sleep(0.01)
        patience.progress(100 - left, 100)
        assert await patience.again()
    deadline = time.monotonic() + 10
    while await patience.again():
        assert time.monotonic() < deadline
        patience.progress(99, 100)  # that is none


@pytest.mark.parametrize("late", [False, True])
async def test_nobody_waits_who_has_given_up(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    monkeypatch.setattr(filling, "AGAIN", (60.0,))
    given_up = asyncio.Event()
    patience = Patience(given_up)
    asyncio.get_running_loop().call_later(0.01 * late, given_up.set)
    async with asyncio.timeout(10):
        assert not await patience.again()
