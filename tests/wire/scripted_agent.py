"""An agent within the test's own process: the real server, with handlers that follow a script.

What an agent says, and in which order it says it or dies, is up to the test; client, frames and
dispatch are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agent.errors import AgentError
from agent.server import Server
from orchestrator.errors import AgentDied
from orchestrator.migration.result import PHASES
from tests.support.facts import Case

Json = dict[str, Any]
Answer = Json | AgentError | Callable[..., Awaitable[Any]]

SOURCE_ID, DESTINATION_ID = "5" * 32, "d" * 32
SOURCE_PHASES = {name: 2.0 + place for place, name in enumerate(PHASES[1:6])}  # lock ... ship
DESTINATION_PHASES = {name: 20.0 + place for place, name in enumerate(PHASES[6:])}


def stream(port: int, **over: Any) -> Json:
    """One stream of a source's report."""
    return {
        "local": "10.77.0.100:6379",
        "remote": f"10.77.0.13:{port}",
        "state": "ESTABLISHED",
        "receive_queue": 1,
        "send_queue": 20,
        "unsent": 5,
        **over,
    }


def wake(port: int, wake_ms: float = 0.5, probes: int = 1) -> Json:
    """One stream of a destination's report."""
    ends = {"local": "10.77.0.100:6379", "remote": f"10.77.0.13:{port}"}
    return {**ends, "wake_ms": wake_ms, "probes": probes}


def source_report(outcome: str = "migrated", error: AgentError | None = None, **over: Any) -> Json:
    return {
        "outcome": outcome,
        "error": None if error is None else {**error.to_wire(), "phase": "dump_process"},
        "phases_ms": dict(SOURCE_PHASES),
        "lock_at": 100.0,
        "clock_offset": 50.0,
        "clock_error": 0.0002,
        "streams": [stream(40000), stream(40001)],
        "bytes": {"memory": 5 << 20, "streams": 42, "files": 7000},
        "sync_bytes": 0,
        "sync_left": [],
        "memory_mode": "stop",
        "rounds": [],
        "spans": [["lock", 99.99, 0.02], ["freeze", 100.01, 0.002]],
        "relayed": False,
        **over,
    }


def destination_report(
    outcome: str = "migrated", error: AgentError | None = None, **over: Any
) -> Json:
    return {
        "outcome": outcome,
        "error": None if error is None else {**error.to_wire(), "phase": "restore_process"},
        "phases_ms": dict(DESTINATION_PHASES),
        "spans": [["restore_process", 150.02, 0.01]],
        "resumed_at": 150.04 if outcome == "migrated" else 0.0,
        "wake": [wake(40000), wake(40001)] if outcome == "migrated" else [],
        "replayed_packets": 3 if outcome == "migrated" else 0,
        **over,
    }


class ScriptedAgent:
    """One host's agent and the channel to it, which `orchestrator.agent_client` is given."""

    def __init__(self, host: str, answers: dict[str, Answer]) -> None:
        self.host = host
        self.addresses = [f"{host}.example"]
        self.calls: list[str] = []
        self.relayed: list[Any] = []
        self.greeted = False  # the orchestrator reads what we say
        self.closed = False
        self.answers = answers
        self.server = Server(self)
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._calls = {name: asyncio.Event() for name in answers}
        for name in answers:
            self.server.expose(name, self._handler(name))
        self.server.on_event("relay", lambda data: self.relayed.append(data["data"]))
        self.server.hello()

    def _handler(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def handle(**args: Any) -> Any:
            self.calls.append(name)
            self._calls[name].set()
            answer = self.answers[name]
            if isinstance(answer, AgentError):
                raise answer
            return await answer(**args) if callable(answer) else answer

        return handle

    async def called(self, name: str) -> None:
        """Wait until `name` has been called."""
        await asyncio.wait_for(self._calls[name].wait(), 10)

    def die(self) -> None:
        """The session ends, as when the agent was killed."""
        self._arrived.put_nowait(None)
        self.server.disconnected.set()
        for task in self.server._tasks:
            task.cancel()

    # --- the agent's side of the bytes

    def write(self, data: bytes) -> None:
        self._arrived.put_nowait(data)

    async def drain(self) -> None: ...

    @property
    def channel(self) -> _Channel:
        return _Channel(self)


class _Channel:
    """The orchestrator's side of the bytes."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self._agent = agent
        self.host = agent.host
        self.addresses = agent.addresses

    async def chunks(self) -> AsyncIterator[bytes]:
        self._agent.greeted = True
        while (data := await self._agent._arrived.get()) is not None:
            yield data

    def write(self, data: bytes) -> None:
        if not self._agent.server.disconnected.is_set():
            self._agent.server.feed(data)

    async def drain(self) -> None: ...

    async def why_ended(self) -> AgentError:
        return AgentDied(host=self.host, detail="exit status 137; it said nothing")

    async def close(self, patience: float) -> None:
        self._agent.closed = True
        self._agent.die()
        await self._agent.server.finish()


def pair(case: Case | None = None) -> tuple[ScriptedAgent, ScriptedAgent]:
    """Source and destination whose facts allow a move; "source.run" and "destination.run" are
    answered by the reports of a success unless a test says otherwise."""
    case = case or Case()
    source = ScriptedAgent(
        "src",
        {
            "probe.host": dict(case.source),
            "probe.process": dict(case.process),
            "source.prepare": {"public_key": "ssh-ed25519 AAAA", "host_id": SOURCE_ID},
            "source.run": source_report(),
            "source.cancel": {"accepted": True},
            "source.resolve": source_report(),
        },
    )
    destination = ScriptedAgent(
        "dst",
        {
            "probe.host": dict(case.destination),
            "probe.destination": dict(case.found),
            "destination.prepare": {
                "addresses": ["10.77.0.12"],
                "port": 1,
                "host_key": "key",
                "zstd": False,
                "host_id": DESTINATION_ID,
            },
            "destination.run": destination_report(),
        },
    )
    return source, destination
