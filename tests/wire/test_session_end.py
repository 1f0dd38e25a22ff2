"""The end of a session: a migration under way is told, and awaited before the agent goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import agent.destination
import agent.session
import agent.source
from agent.errors import AgentError, FaultInjected
from agent.lease import ALIVE, MISSES, Lease
from agent.server import Server
from agent.session import STOP_SIGNALS, serve
from agent.wire.frames import FrameDecoder, Message, encode
from tests.support.polling import DEADLINE, until

PREPARE = {
    "source.prepare": {"plan": {}},
    "destination.prepare": {"plan": {}, "client_key": "", "source_id": ""},
}


class FakeMigration:
    """A side of a migration that does as the test says; the last one made is `made`."""

    made: Any

    def __init__(self, server: Server) -> None:
        type(self).made = self
        self.gone = asyncio.Event()
        self.prepared = asyncio.Event()
        self.prepared.set()
        self.over = False
        self.fails: AgentError | None = None

    async def prepare(self, **_: Any) -> dict[str, Any]:
        await self.prepared.wait()
        if self.fails is not None:
            raise self.fails
        return {}

    async def run(self, **_: Any) -> dict[str, Any]:
        await self.gone.wait()
        for _ in range(20):  # it takes a while to undo
            await asyncio.sleep(0.001)
        self.over = True
        return {"outcome": "rolled-back"}

    async def orchestrator_gone(self) -> None:
        self.gone.set()


class Slow(FakeMigration):
    """It is still preparing when the session ends."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.prepared.clear()


class Caller:
    """The orchestrator's end of a session that is served in this process."""

    def __init__(self) -> None:
        self.socket, ours = socket.socketpair()
        self.socket.setblocking(False)
        self._decoder = FrameDecoder()
        self._messages: list[Message] = []
        fd = ours.detach()
        self.serving = asyncio.create_task(serve(fd, os.dup(fd)))

    async def call(self, name: str, **args: Any) -> Message:
        self.send(name, **args)
        return await self.receive()

    def send(self, name: str, **args: Any) -> None:
        self.socket.send(encode({"id": 1, "call": name, "args": args}))

    async def receive(self) -> Message:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            while not self._messages:
                data = await loop.sock_recv(self.socket, 1 << 16)
                assert data, "the session ended"
                self._messages += self._decoder.feed(data)
        return self._messages.pop(0)

    async def ended(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.serving


@asynccontextmanager
async def session() -> AsyncIterator[Caller]:
    caller = Caller()
    try:
        assert "hello" in await caller.receive()
        yield caller
        await caller.ended()
    finally:
        caller.serving.cancel()
        caller.socket.close()
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)


@pytest.fixture(params=["source", "destination"])
def role(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, FakeMigration)
    return str(request.param)


def use(monkeypatch: pytest.MonkeyPatch, migration: type[FakeMigration]) -> None:
    migration.made = None
    monkeypatch.setattr(agent.source, "SourceMigration", migration)
    monkeypatch.setattr(agent.destination, "DestinationMigration", migration)


async def begin(caller: Caller, role: str) -> FakeMigration:
    """Prepare, and start a run."""
    assert "result" in await caller.call(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
    caller.send(f"{role}.run", **({"link": {}} if role == "source" else {}))
    migration: FakeMigration = FakeMigration.made
    return migration


def close(caller: Caller) -> None:
    caller.socket.shutdown(socket.SHUT_WR)


def vanish(caller: Caller) -> None:
    caller.socket.close()


def garble(caller: Caller) -> None:
    caller.socket.send(b"not the protocol at all")


def signalled(caller: Caller) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("end", [close, vanish, garble, signalled])
async def test_a_run_is_told_and_awaited(role: str, end: Any) -> None:
    async with session() as caller:
        migration = await begin(caller, role)
        end(caller)
        await caller.ended()
        assert migration.gone.is_set() and migration.over


async def test_one_that_is_silent_is_taken_for_gone(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in silence: the descriptor never ends."""
    monkeypatch.setattr(agent.session, "BEAT", 0.002)
    async with session() as caller:
        migration = await begin(caller, role)
        caller.socket.send(encode({"event": ALIVE, "data": {}}))
        await caller.ended()
        assert migration.gone.is_set() and migration.over


async def test_one_that_says_it_lives_is_not(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.session, "BEAT", 0.05)
    async with session() as caller:
        migration = await begin(caller, role)
        for _ in range(20):
            caller.socket.send(encode({"event": ALIVE, "data": {}}))
            await asyncio.sleep(0.05)
        assert not migration.gone.is_set()
        close(caller)


def test_beats_are_counted_once_they_have_begun() -> None:
    lease = Lease()
    assert not any(lease.missed() for _ in range(100))
    lease.begin()
    lease.heard()
    assert [lease.missed() for _ in range(MISSES + 1)] == [False] * MISSES + [True]


async def test_one_that_is_only_prepared_is_told(role: str) -> None:
    async with session() as caller:
        await caller.call(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        close(caller)
        await caller.ended()
        assert FakeMigration.made.gone.is_set()


async def test_one_that_is_only_being_prepared_is_given_up(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Slow)
    async with session() as caller:
        caller.send(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        await until(lambda: Slow.made)
        close(caller)
        await caller.ended()
        assert not Slow.made.prepared.is_set()


async def test_one_that_is_prepared_all_the_same_is_told(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing may be past the point at which it can be given up."""

    class Stubborn(Slow):
        async def prepare(self, **_: Any) -> dict[str, Any]:
            with contextlib.suppress(asyncio.CancelledError):
                await self.prepared.wait()
            return {}

    use(monkeypatch, Stubborn)
    async with session() as caller:
        caller.send(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        await until(lambda: Stubborn.made)
        close(caller)
        await caller.ended()
        assert Stubborn.made.gone.is_set()


async def test_a_session_without_a_migration_just_ends() -> None:
    async with session() as caller:
        close(caller)


async def test_an_agent_takes_part_in_one_migration_only(role: str) -> None:
    async with session() as caller:
        await caller.call(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        for call, args in PREPARE.items():
            reply = await caller.call(call, **args)
            assert reply["error"]["code"] == "already-prepared"
            assert reply["error"]["fields"] == {"role": role}
        close(caller)


async def test_a_prepare_that_failed_leaves_the_agent_free(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FakeMigration):
        def __init__(self, server: Server) -> None:
            super().__init__(server)
            self.fails = FaultInjected(point="prepare")

    use(monkeypatch, Failing)
    async with session() as caller:
        reply = await caller.call(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        assert reply["error"]["code"] == "fault"
        use(monkeypatch, FakeMigration)
        reply = await caller.call(f"{role}.prepare", **PREPARE[f"{role}.prepare"])
        assert "result" in reply
        close(caller)


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("source.run", {"link": {}}),
        ("source.cancel", {}),
        ("source.resolve", {"committed": True}),
        ("destination.run", {}),
    ],
)
async def test_nothing_runs_that_was_not_prepared(call: str, args: dict[str, Any]) -> None:
    async with session() as caller:
        reply = await caller.call(call, **args)
        assert reply["error"]["code"] == "not-prepared"
        assert reply["error"]["fields"] == {"call": call, "role": call.partition(".")[0]}
        close(caller)


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("source.prepare", {"plan": None}),
        ("source.prepare", {"plan": {"id": "../../etc"}}),
        ("destination.prepare", {"plan": [], "client_key": "x", "source_id": "x"}),
        ("destination.prepare", {"plan": {}}),
        ("probe.process", {"pid": "1"}),
    ],
)
async def test_bad_arguments_are_refused_and_nothing_is_prepared(
    call: str, args: dict[str, Any]
) -> None:
    """With the real classes: a plan is taken from nobody unread."""
    async with session() as caller:
        reply = await caller.call(call, **args)
        assert reply["error"]["code"] in ("protocol", "internal"), reply
        if call.endswith("prepare"):
            assert reply["error"]["code"] == "protocol"
        close(caller)
