"""Wait for something to become true, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

DEADLINE = 20.0  # seconds


async def until(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Poll until the condition holds. Raises `TimeoutError` after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def settled(*events: asyncio.Event) -> None:
    """Await all events. Raises `TimeoutError` after `DEADLINE`."""
    async with asyncio.timeout(DEADLINE):
        for event in events:
            await event.wait()
