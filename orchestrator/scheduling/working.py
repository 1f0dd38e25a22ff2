"""One run at work: the drains of its playbook, in order, under the ids that it was claimed with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.errors import AgentError
from orchestrator.draining.beginning import Asked, ask
from orchestrator.draining.conductor import Conductor
from orchestrator.draining.journal import UnknownDrain, drain_begun, unfinished
from orchestrator.draining.logged import Listener
from orchestrator.draining.outcome import DRAINED, NOT_OVER, NOTHING
from orchestrator.draining.window import Window
from orchestrator.errors import Interrupted
from orchestrator.playbook.loading import Loaded, load
from orchestrator.playbook.model import STOP
from orchestrator.scheduling.books import digest_of
from orchestrator.scheduling.deciding import DONE, FAILED, INTERRUPTED
from orchestrator.scheduling.store import Run

Json = dict[str, Any]
Keep = Callable[[Run], None]


@dataclass(slots=True)
class Ended:
    """What a run came to: DONE, FAILED, or INTERRUPTED, to be gone on with."""

    state: str
    why: str = ""
    results: list[Json] = field(default_factory=list)  # as `migrate drain --json` has them


class Work(Protocol):
    """A run at work."""

    async def go(self) -> Ended: ...
    def interrupt(self) -> None: ...


class Drains:
    """The real one."""

    def __init__(
        self,
        run: Run,
        path: str,
        keep: Keep,
        listener: Listener,
        ssh_config: str | None = None,
        hosts: str | None = None,
        now: Callable[[], float] | None = None,
        conductor: Callable[..., Conductor] = Conductor,
        drained: Callable[[Json], None] = lambda _result: None,
    ) -> None:
        """`keep` has what is known of its drains written down; `drained` is told each result."""
        self._run, self._path, self._keep = run, path, keep
        self._ssh_config, self._hosts = ssh_config, hosts
        self._window = Window(run.closes, *([now] if now is not None else []))
        self._conductor = conductor(ssh_config, listener, window=self._window)
        self._drained = drained
        self._loaded: Loaded | None = None
        self._results: list[Json] = []

    def interrupt(self) -> None:
        """Begin nothing more, and undo what is on the move while that is possible."""
        self._conductor.interrupt()

    async def go(self) -> Ended:
        """Never raises `AgentError`."""
        whys: list[str] = []
        for place, drain in enumerate(self._run.drains):
            if drain["outcome"]:  # it had come to its end before this was interrupted
                continue
            if self._conductor.interrupted:
                return Ended(INTERRUPTED, "", self._results)
            stop = False
            try:
                result = await self._drain(place, drain)
            except AgentError as error:
                if self._conductor.interrupted:  # then it is asked again
                    return Ended(INTERRUPTED, "", self._results)
                whys.append(f"{drain['node']}: {error.message}")
                drain["outcome"], stop = FAILED, True
                if not drain_begun(drain["id"]):
                    drain["id"] = ""
            else:
                self._results.append(result)
                self._drained(result)
                good = result["outcome"] in (DRAINED, NOTHING)
                if result["outcome"] in NOT_OVER or (self._conductor.interrupted and not good):
                    return Ended(INTERRUPTED, "", self._results)
                resumed = drain["id"] if drain_begun(drain["id"]) else ""
                drain["id"], drain["outcome"] = result["id"] or resumed, result["outcome"]
                if not good:
                    whys.append(_why(result) + _rest(drain["id"]))
                    stop = await self._stops(place)
            self._keep(self._run)
            if stop:
                break
        left = [one["node"] for one in self._run.drains if not one["outcome"]]
        if left:
            whys.append(f"{', '.join(left)} was not begun")
        state = DONE if not whys and not _failed(self._run) else FAILED
        return Ended(state, "; ".join(whys) or _failed(self._run), self._results)

    async def _drain(self, place: int, drain: Json) -> Json:
        """Go on where it was, or begin. Raises `AgentError`."""
        try:
            return await self._conductor.resume(drain["id"])
        except UnknownDrain:  # then nothing of it was ever begun
            asked = await self._asked(place)
        self._window.check()
        if self._conductor.interrupted:
            raise Interrupted(verb="schedule serve")
        return await self._conductor.drain(asked, False, drain["id"])

    async def _asked(self, place: int) -> Asked:
        """What the playbook says now, if it is still the same. Raises `AgentError`."""
        loaded = await self._load()
        if (error := loaded.error()) is not None:
            raise error
        book = loaded.playbook
        if book is None or digest_of(book) != self._run.digest:
            raise BookChanged(path=self._path)
        return ask(book.drains[place], book.defaults, loaded.known)

    async def _stops(self, place: int) -> bool:
        """Whether a drain that failed ends the run."""
        book = (await self._load()).playbook
        return book is None or book.drains[place].on_failure == STOP

    async def _load(self) -> Loaded:
        if self._loaded is None:  # names of hosts are asked for, which may take its time
            arguments = (self._path, self._hosts, self._ssh_config)
            self._loaded = await asyncio.to_thread(load, *arguments)
        return self._loaded


class BookChanged(AgentError):
    code = "playbook-changed"
    template = "{path} is not what it was when this run was claimed"
    hint_template = "What had been begun was gone on with; the next run is by the new one."


def _failed(run: Run) -> str:
    """Which of its drains had failed, in words; "" where none had."""
    bad = [one["node"] for one in run.drains if one["outcome"] not in ("", DRAINED, NOTHING)]
    return f"{', '.join(bad)} failed before this was interrupted" if bad else ""


def _rest(drain: str) -> str:
    """How what is left of a drain can be gone on with; "" where nothing is."""
    return f" (`migrate drain --resume {drain}` goes on)" if drain in unfinished() else ""


def _why(result: Json) -> str:
    error = result["error"]
    return f"{result['node']}: {error['message'] if error else result['outcome']}"
