"""The calls of a session: each reaches its migration, of which there is one.

tests/wire/test_session_end.py has the end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.session import serve
from agent.wire.frames import FrameDecoder, Message, encode
from tests.support.polling import DEADLINE, until


class Migration:
    """Stands for either side of a migration; its steps wait for their gates."""

    made: list[Migration] = []
    gates: dict[str, asyncio.Event] = {}

    def __init__(self, server: Any) -> None:
        self.server = server
        self.told = 0
        self.began: list[str] = []
        Migration.made.append(self)

    async def _step(self, name: str) -> dict[str, Any]:
        self.began.append(name)
        if name in Migration.gates:
            await Migration.gates[name].wait()
        return {"did": name}

    async def prepare(self, **_: Any) -> dict[str, Any]:
        return await self._step("prepare")

    async def run(self, **_: Any) -> dict[str, Any]:
        return await self._step("run")

    async def cancel(self) -> dict[str, Any]:
        return await self._step("cancel")

    async def resolve(self, committed: bool) -> dict[str, Any]:
        return await self._step(f"resolve {committed}")

    async def orchestrator_gone(self) -> None:
        self.told += 1


class Caller:
    """The orchestrator's end of the session."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        self._decoder = FrameDecoder()
        self._messages: list[Message] = []
        self._number = 0
        read, write = os.dup(theirs.fileno()), os.dup(theirs.fileno())
        theirs.close()
        self.serving = asyncio.create_task(serve(read, write))

    async def receive(self) -> Message:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            while not self._messages:
                data = await loop.sock_recv(self._socket, 1 << 16)
                assert data, "the agent has gone"
                self._messages += self._decoder.feed(data)
        return self._messages.pop(0)

    def send(self, call: str, **args: Any) -> int:
        self._number += 1
        self._socket.send(encode({"id": self._number, "call": call, "args": args}))
        return self._number

    async def call(self, name: str, **args: Any) -> Any:
        """The result, or the code of the error."""
        number = self.send(name, **args)
        reply = await self.receive()
        assert reply["id"] == number
        return reply["result"] if "result" in reply else reply["error"]["code"]

    def hang_up(self) -> None:
        self._socket.close()

    async def over(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.serving


@pytest.fixture
async def caller(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    monkeypatch.setattr("agent.source.SourceMigration", Migration)
    monkeypatch.setattr("agent.destination.DestinationMigration", Migration)
    Migration.made, Migration.gates = [], {}
    made = Caller()
    assert "hello" in await made.receive()
    yield made
    made.hang_up()
    for gate in Migration.gates.values():
        gate.set()
    await made.over()


SOURCE = ("source.prepare", {"plan": {}})
DESTINATION = ("destination.prepare", {"plan": {}, "client_key": "key", "source_id": "id"})


async def test_each_call_reaches_its_migration(caller: Caller) -> None:
    assert await caller.call("source.prepare", plan={}) == {"did": "prepare"}
    assert await caller.call("source.run", link={}) == {"did": "run"}
    assert await caller.call("source.cancel") == {"did": "cancel"}
    assert await caller.call("source.resolve", committed=True) == {"did": "resolve True"}
    assert await caller.call("destination.run") == "not-prepared"


@pytest.mark.parametrize("first", [SOURCE, DESTINATION], ids=lambda one: one[0])
@pytest.mark.parametrize("second", [SOURCE, DESTINATION], ids=lambda one: one[0])
async def test_an_agent_serves_one_migration_also_while_it_is_prepared(
    caller: Caller, first: Any, second: Any
) -> None:
    """Otherwise one of them would never be told of the end."""
    Migration.gates["prepare"] = gate = asyncio.Event()
    number = caller.send(first[0], **first[1])
    await until(lambda: Migration.made)
    assert await caller.call(second[0], **second[1]) == "already-prepared"
    gate.set()
    assert (await caller.receive())["id"] == number


async def test_a_cordoned_host_takes_in_only_what_comes_back(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cordon.look", lambda _path: {"since": 1, "reason": "fans"})
    name, arguments = DESTINATION
    assert await caller.call(name, **arguments) == "cordoned"
    assert await caller.call(name, **arguments, returns=1) == "cordoned"
    assert not Migration.made
    assert await caller.call(name, **arguments, returns=True) == {"did": "prepare"}


async def test_what_is_told_after_the_end_goes_nowhere(caller: Caller) -> None:
    """And nobody waits for room in a stream that nobody reads."""
    await caller.call(*SOURCE[:1], **SOURCE[1])
    caller.hang_up()
    await caller.over()
    server = Migration.made[0].server
    server.send_event("phase", {"name": "lock"})
    async with asyncio.timeout(DEADLINE):
        await server.drain()
