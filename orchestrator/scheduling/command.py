"""For tests and experiments: a command in place of a run's drains."""

from __future__ import annotations

import asyncio

from orchestrator.scheduling.deciding import DONE, FAILED, INTERRUPTED
from orchestrator.scheduling.store import Run
from orchestrator.scheduling.working import Ended


class Command:
    """Is given the playbook, the due time, and the ids of the drains, as those would have them."""

    def __init__(self, run: Run, command: str) -> None:
        self._words = [command, run.playbook, f"{run.due:.3f}", *(one["id"] for one in run.drains)]
        self._stop = asyncio.Event()

    def interrupt(self) -> None:
        self._stop.set()

    async def go(self) -> Ended:
        process = await asyncio.create_subprocess_exec(*self._words)
        ends = asyncio.ensure_future(process.wait())
        stops = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({ends, stops}, return_when=asyncio.FIRST_COMPLETED)
        stops.cancel()
        if not ends.done():
            process.terminate()
            await ends
            return Ended(INTERRUPTED)
        status = ends.result()
        return Ended(DONE) if status == 0 else Ended(FAILED, f"status {status}")
