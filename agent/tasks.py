"""Works that go on beside each other, none of which outlives the one who began them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
Tasks = list[asyncio.Future[Any]]


@contextlib.asynccontextmanager
async def together(*works: Awaitable[Any]) -> AsyncIterator[Tasks]:
    """A task of each, in this order; those that go on in the end are cancelled, and awaited.

    What a task fails with is told to whoever asks it for its result.
    """
    tasks: Tasks = [asyncio.ensure_future(one) for one in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def apart(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that may fail without a word where nobody asks for its result."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda one: one.cancelled() or one.exception())
    return task


async def first_of(tasks: Tasks) -> None:
    """Until one of them has ended."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
