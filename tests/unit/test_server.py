"""The agent's dispatch: an allow-list, arguments by name, and an answer to every call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent import PROTOCOL_VERSION
from agent.errors import AgentError, FaultInjected, ProtocolError
from agent.server import Server
from agent.wire.frames import MAX_FRAME, FrameDecoder, Message, encode


class Caller:
    """The other end of a server's transport."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self.messages: list[Message] = []
        self.drained = 0
        self.server = Server(self)

    def write(self, data: bytes) -> None:
        self.messages += self._decoder.feed(data)

    async def drain(self) -> None:
        self.drained += 1

    async def call(self, name: object, args: object = None, number: object = 1) -> Message:
        message = {"id": number, "call": name, "args": {} if args is None else args}
        self.server.feed(encode(message))
        assert self.server.busy
        await self.server.finish()
        return self.messages.pop()


@pytest.fixture
def caller() -> Caller:
    return Caller()


async def test_hello_comes_with_the_version(caller: Caller) -> None:
    caller.server.hello()
    (message,) = caller.messages
    assert message["hello"] == PROTOCOL_VERSION
    assert isinstance(message["pid"], int) and isinstance(message["agent"], str)


async def test_a_call_with_named_arguments(caller: Caller) -> None:
    async def divide(number: int, by: int) -> list[int]:
        return [number // by, number % by]

    caller.server.expose("divide", divide)
    assert await caller.call("divide", {"by": 5, "number": 17}, 7) == {"id": 7, "result": [3, 2]}
    assert not caller.server.busy


async def test_calls_are_answered_as_they_end(caller: Caller) -> None:
    gate = asyncio.Event()

    async def wait() -> str:
        await gate.wait()
        return "waited"

    async def go() -> str:
        gate.set()
        return "gone"

    caller.server.expose("wait", wait)
    caller.server.expose("go", go)
    caller.server.feed(encode({"id": 1, "call": "wait"}) + encode({"id": 2, "call": "go"}))
    await caller.server.finish()
    assert sorted((one["id"], one["result"]) for one in caller.messages) == [
        (1, "waited"),
        (2, "gone"),
    ]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("unknown", {}),
        ("__init__", {}),
        ("server.expose", {"name": "x"}),
        ("take", {}),
        ("take", {"wrong": 1}),
        ("take", {"value": 1, "more": 2}),
        ("take", {"value": 1, "self": 2}),
    ],
)
async def test_a_call_that_is_not_allowed_or_does_not_fit(
    caller: Caller, name: str, args: dict[str, int]
) -> None:
    async def take(value: int) -> int:
        raise AssertionError("must not be called")

    caller.server.expose("take", take)
    reply = await caller.call(name, args)
    assert reply["error"]["code"] == "protocol", reply


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"id": "1", "call": "take"},
        {"id": 1, "call": 2},
        {"id": 1, "call": "take", "args": []},
        {"id": 1, "call": "take", "args": None},
        {"event": "unknown", "data": {}},
        {"event": 5, "data": {}},
        {"event": ["known"], "data": {}},
        {"event": "known"},
        {"event": "known", "data": b"x"},
        {"hello": 1},
        {"id": 1, "result": None},
    ],
)
async def test_a_message_that_is_neither_call_nor_event(caller: Caller, message: Message) -> None:
    """Whoever sends such a thing is no orchestrator of ours: the session ends."""
    caller.server.on_event("known", lambda data: None)
    with pytest.raises(ProtocolError):
        caller.server.feed(encode(message))
    assert not caller.server.busy and not caller.messages


async def test_events_both_ways(caller: Caller) -> None:
    seen: list[dict[str, Any]] = []
    caller.server.on_event("relay", seen.append)
    caller.server.feed(encode({"event": "relay", "data": {"data": b"abc"}}))
    caller.server.send_event("phase", {"name": "lock"})
    assert seen == [{"data": b"abc"}]
    assert caller.messages == [{"event": "phase", "data": {"name": "lock"}}]


@pytest.mark.parametrize("raised", [FaultInjected(point="lock"), AgentError(detail="such")])
async def test_an_error_of_ours_crosses_as_such(caller: Caller, raised: AgentError) -> None:
    async def fail() -> None:
        raise raised

    caller.server.expose("fail", fail)
    assert await caller.call("fail") == {"id": 1, "error": raised.to_wire()}


async def test_a_fault_of_ours_says_where(caller: Caller) -> None:
    async def fail_somewhere() -> None:
        raise ZeroDivisionError("by nought")

    caller.server.expose("fail", fail_somewhere)
    error = (await caller.call("fail"))["error"]
    assert error["code"] == "internal"
    assert error["fields"]["detail"].startswith("ZeroDivisionError: by nought (")
    assert "test_server.py:" in error["fields"]["detail"]


@pytest.mark.parametrize("value", [object(), {1, 2}, 1 << 64, bytes(MAX_FRAME), Path("/")])
async def test_a_result_that_cannot_be_sent_is_still_answered(
    caller: Caller, value: object
) -> None:
    async def give() -> object:
        return value

    caller.server.expose("give", give)
    assert (await caller.call("give"))["error"]["code"] in ("internal", "protocol")


@pytest.mark.parametrize("value", [Path("/nowhere"), 1 << 70, "x" * (MAX_FRAME + 1), "\udcff"])
async def test_an_error_that_cannot_be_sent_is_still_answered(caller: Caller, value: Any) -> None:
    async def fail() -> None:
        raise FaultInjected(point=value)

    caller.server.expose("fail", fail)
    error = (await caller.call("fail"))["error"]
    assert error["code"] in ("internal", "fault")
    assert "fault injected at" in str(error) or error["fields"]["point"]


async def test_said_into_the_void_once_the_caller_is_gone(caller: Caller) -> None:
    gate = asyncio.Event()

    async def wait() -> str:
        await gate.wait()
        return "done"

    caller.server.expose("wait", wait)
    caller.server.feed(encode({"id": 1, "call": "wait"}))
    caller.server.disconnected.set()
    await caller.server.drain()
    gate.set()
    await caller.server.finish()
    caller.server.send_event("phase", {})
    assert caller.messages == [] and caller.drained == 0
