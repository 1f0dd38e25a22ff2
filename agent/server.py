"""Serves calls that arrive on the agent's stdio: version first, then an allow-list by name.

Messages (each one frame of `agent.wire.frames`):

    agent  -> {"hello": PROTOCOL_VERSION, "agent": version, "pid": int}
    caller -> {"id": int, "call": name, "args": {...}}
    agent  -> {"id": int, "result": value} or {"id": int, "error": {"code", "fields"}}
    either -> {"event": name, "data": {...}}
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agent import PROTOCOL_VERSION, __version__
from agent.errors import AgentError, ProtocolError, internal, shown
from agent.wire.frames import FrameDecoder, Message, encode

MAX_CALLS = 64  # under way at once; an orchestrator has a few

Handler = Callable[..., Awaitable[Any]]


class Transport(Protocol):
    """What the server needs of its byte stream."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class Server:
    """Dispatches calls to handlers; each call runs in a task of its own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._decoder = FrameDecoder()
        self._calls: dict[str, Handler] = {}
        self._events: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.disconnected = asyncio.Event()

    def expose(self, name: str, handler: Handler) -> None:
        """Allow `handler` to be called as `name`."""
        self._calls[name] = handler

    def on_event(self, name: str, handler: Callable[[dict[str, Any]], None]) -> None:
        """Allow the caller to send event `name`."""
        self._events[name] = handler

    def send_event(self, name: str, data: dict[str, Any]) -> None:
        """Tell the caller; said into the void when it is gone."""
        self._send({"event": name, "data": data})

    def hello(self) -> None:
        self._send({"hello": PROTOCOL_VERSION, "agent": __version__, "pid": os.getpid()})

    def feed(self, data: bytes) -> None:
        """Handle what arrived. Raises `ProtocolError` where it is not our protocol."""
        for message in self._decoder.feed(data):
            self._dispatch(message)

    async def drain(self) -> None:
        """Wait until what was sent has left (back-pressure)."""
        if not self.disconnected.is_set():
            await self._transport.drain()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._tasks)

    async def finish(self) -> None:
        """Wait for the calls under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _send(self, message: Message) -> None:
        if not self.disconnected.is_set():
            self._transport.write(encode(message))

    def _dispatch(self, message: Message) -> None:
        if "event" in message:
            event = message["event"]
            handler = self._events.get(event) if isinstance(event, str) else None
            if handler is None or not isinstance(message.get("data"), dict):
                raise ProtocolError(detail=f"unknown event {shown(event, 80)}")
            handler(message["data"])
            return
        number, name, args = message.get("id"), message.get("call"), message.get("args", {})
        if not isinstance(number, int) or not isinstance(name, str) or not isinstance(args, dict):
            raise ProtocolError(detail="a message that is neither a call nor an event")
        if len(self._tasks) >= MAX_CALLS:
            raise ProtocolError(detail=f"more than {MAX_CALLS} calls at once")
        task = asyncio.ensure_future(self._run(number, name, args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, number: int, name: str, args: dict[str, Any]) -> None:
        try:
            handler = self._calls.get(name)
            if handler is None:
                raise ProtocolError(detail=f"no call is named {shown(name, 80)}")
            try:
                inspect.signature(handler).bind(**args)
            except TypeError as error:
                raise ProtocolError(detail=f"arguments of {name}: {error!s:.200}") from error
            reply: Message = {"id": number, "result": await handler(**args)}
            self._send(reply)
        except AgentError as error:
            self._send_error(number, error)
        except Exception as error:  # the caller must hear of our own faults, too
            self._send_error(number, internal(error))
        await self.drain()  # one who calls and does not read is not answered without end

    def _send_error(self, number: int, error: AgentError) -> None:
        try:
            self._send({"id": number, "error": error.to_wire()})
        except (AgentError, TypeError, ValueError, OverflowError):  # fields that cannot be sent
            detail = f"{error.code}: {error.message:.1000}"
            self._send({"id": number, "error": AgentError(detail=detail).to_wire()})
