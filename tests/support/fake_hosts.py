"""Both sides of a migration with their real protocol, link and checks, but on no host at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import custody
from agent.image.records import Record, RecordDecoder, RecordEncoder
from agent.netlock import apply
from agent.tcp import options, time_wait
from tests.support.polling import DEADLINE

Json = dict[str, Any]


class Nothing:
    """Takes the place of whatever touches the host."""

    pid = os.getpid()
    births: list[list[int]] = []  # of a tree

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: None


class Capture(Nothing):
    def drain(self, *_: Any) -> list[bytes]:
        return []


class Replayer(Nothing):
    def replay(self, packets: list[bytes]) -> int:
        return len(packets)


class Worker(Nothing):
    async def restore(self, *_: Any, **__: Any) -> int:
        Copy.exists = True
        return os.getpid()


class Paging(Nothing):
    async def ready(self) -> None: ...

    async def restored(self, heard: object = None) -> None: ...

    async def filled(self, heard: Callable[[dict[str, Any]], None]) -> int:
        heard({"left": 0})
        return 0


class Copy(Nothing):
    """The destination's copy of the process: a tree that is there or not, and runs or not."""

    exists = False
    runs = False
    ended = None

    def thaw(self) -> None:
        Copy.runs = True

    async def kill(self) -> None:
        Copy.exists = Copy.runs = False


class Locks:
    """What nft was told, by the tables that are left."""

    def __init__(self) -> None:
        self.tables: set[str] = set()

    def run(self, script: str) -> str:
        for line in script.splitlines():
            match line.split():
                case ["delete", "table", "inet", name]:
                    self.tables.discard(name)
                case ["table", "inet", name, "{"]:
                    self.tables.add(name)
        return ""


@contextlib.contextmanager
def fake_hosts(directory: Path) -> Iterator[Locks]:
    """`directory` is where the journals are; the images are where the plan says."""
    locks = Locks()

    def in_directory(plan: Any, role: str, **facts: object) -> custody.Custody:
        return custody.Custody(plan, role, directory, **facts)

    def close(sock: socket.socket) -> None:
        sock.close()

    async def wake(_: Any) -> None: ...

    Copy.exists = Copy.runs = False
    with pytest.MonkeyPatch.context() as patch:
        for name in ("warm", "run"):
            patch.setattr(apply, name, locks.run if name == "run" else Nothing())
        patch.setattr(apply, "warm", lambda: None)
        patch.setattr(options, "warm_up", lambda: None)
        for name in ("Breakpoints", "AddressMover"):
            patch.setattr(f"agent.host.{name}", Nothing)
        patch.setattr("agent.host.keep_freed_memory", lambda: None)
        patch.setattr("agent.host.Replayer", Replayer)
        patch.setattr("agent.host.Capture", Capture)
        patch.setattr("agent.custody.Guardian", Nothing)
        for role in ("source", "destination"):
            patch.setattr(f"agent.{role}.Custody", in_directory)
            patch.setattr(f"agent.{role}.gc", Nothing())  # it takes long among many tests
        at = "agent.destination_host"
        patch.setattr(f"{at}.CriuWorker", Worker)
        patch.setattr(f"{at}.Tree", Copy)
        patch.setattr(f"{at}.Paging", Paging)
        for name in ("restore", "release", "settle"):
            patch.setattr(f"{at}.{name}", lambda *_, **__: None)
        patch.setattr(f"{at}.abandon", close)
        patch.setattr(f"{at}.wake", wake)
        patch.setattr(time_wait, "prepare", lambda one: socket.socket())
        patch.setattr(time_wait, "finish", lambda sock, *_: sock.close())
        yield locks


class FakeServer:
    """The orchestrator's end: it carries the link's bytes to the hostile peer and back."""

    def __init__(self) -> None:
        self.relay: Callable[[Json], None] = lambda data: None
        self.heard: list[Record] = []
        self.on_record: Callable[[Record], None] = lambda record: None
        self._decoder = RecordDecoder()
        self._encoder = RecordEncoder()
        self._loop = asyncio.get_running_loop()

    def on_event(self, name: str, handler: Callable[[Json], None]) -> None:
        assert name == "relay"
        self.relay = handler

    def send_event(self, name: str, data: Json) -> None:
        if name == "relay" and "data" in data:
            self._loop.call_soon(self._hear, data["data"])

    def _hear(self, data: bytes) -> None:
        for record in self._decoder.feed(data):
            self.heard.append(record)
            self.on_record(record)

    def say(self, *records: Record) -> None:
        for record in records:
            self.relay({"data": b"".join(self._encoder.encode(record))})

    def say_bytes(self, data: bytes) -> None:
        self.relay({"data": data})

    def hang_up(self) -> None:
        self.relay({"data": b""})


async def ended(run: asyncio.Future[Json]) -> Json:
    """The report of a run, in time."""
    async with asyncio.timeout(DEADLINE):
        return await run
