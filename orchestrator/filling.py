"""Bring the rest of a process's memory, by new agents, where post-copy was interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from agent.errors import AgentError
from orchestrator.agent_client import AgentClient
from orchestrator.relay import relay

AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before each try; the last for all others
PATIENCE = 600.0  # seconds without any progress

Progress = Callable[[int, int], None]


async def fill(
    source: AgentClient, destination: AgentClient, migration: str, progress: Progress
) -> None:
    """One link's part of it. Raises what ended it, where that is not the end of it all."""
    for agent, other in ((source, destination), (destination, source)):
        agent.on_event("relay", functools.partial(relay, agent, other))
    destination.on_event("progress", functools.partial(_progress, progress))
    key = await source.source_resume(migration)
    link = await destination.destination_resume(migration, key["public_key"])
    serving = asyncio.ensure_future(source.source_serve(link))
    try:
        await destination.destination_fill()
    except AgentError as error:
        if serving.done() and isinstance(cause := serving.exception(), AgentError):
            raise cause from error
        raise
    finally:
        # It ends with the link.
        await asyncio.wait({serving}, timeout=5.0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _progress(progress: Progress, data: dict[str, Any]) -> None:
    done, total = data.get("done"), data.get("total")
    if isinstance(done, int) and isinstance(total, int):
        progress(done, total)


class Patience:
    """How long to wait before the next try, and whether there is one."""

    def __init__(self, given_up: asyncio.Event) -> None:
        """`given_up`: once it is set there is none."""
        self._given_up = given_up
        self._tries = 0
        self._last = asyncio.get_running_loop().time()
        self._least: int | None = None

    def progress(self, done: int, total: int) -> None:
        left = total - done
        if self._least is None or left < self._least:
            self._least = left
            self._tries = 0
            self._last = asyncio.get_running_loop().time()

    async def again(self) -> bool:
        """Wait; whether to try again."""
        if asyncio.get_running_loop().time() - self._last > PATIENCE:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN[min(self._tries, len(AGAIN) - 1)]):
                await self._given_up.wait()
        self._tries += 1
        return not self._given_up.is_set()
