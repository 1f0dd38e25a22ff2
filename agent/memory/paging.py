"""The agent's side of the pager: start or find it, await what it says, replace one that was killed.

What they say to each other is in `agent.memory.pager`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from agent import offspring
from agent.errors import AgentError
from agent.memory.pager import AGENTS
from agent.phases import SendEvent

_READY = 10.0  # seconds for it to come up
_LARGEST = 1 << 16  # bytes of a message
_FDS = 3  # of a space
_TRIES = 3  # pagers that may die


class PagerFailed(AgentError):
    code = "pager"
    template = "the memory could not be given to the restored process: {detail}"
    hint_template = "Run it again; `--memory stop` goes without."


Heard = Callable[[dict[str, Any]], None]


class Left:
    """Tells the orchestrator how much of the memory is in its place."""

    def __init__(self, send_event: SendEvent) -> None:
        self._send_event = send_event
        self._total = 0  # bytes

    def told(self, left: int) -> None:
        """So many bytes are not."""
        self._total = max(self._total, left)
        done = {"done": self._total - left, "total": self._total}
        self._send_event("progress", {"what": "fill", **done})


class Paging:
    """The pagers of one migration. One is started ahead, and goes on when we have gone."""

    def __init__(self, images: Path, *, start: bool = True) -> None:
        """`start`: else one is there, whose agent has gone. Raises `OSError`."""
        self._images = str(images)
        self._spaces: list[tuple[int, ...]] = []  # PID, origin, userfaultfd, store, missing
        self._process: subprocess.Popen[bytes] | None = None
        self.replaced: Callable[[], None] = lambda: None  # another goes on for one that was killed
        if start:
            self._start()
        else:
            self._attach(str(images / AGENTS))

    def _attach(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Of each space: the process at the source, and the list of what is still there."""
        return [(origin, fds[-1]) for _, origin, *fds in self._spaces]

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket = ours
        spaces = [":".join(map(str, one)) for one in self._spaces]
        fds = [fd for _, _, *three in self._spaces for fd in three]
        with theirs:
            arguments = [self._images, str(theirs.fileno()), *spaces]
            self._process = offspring.start(
                "agent.memory.pager", arguments, [theirs.fileno(), *fds]
            )

    async def ready(self) -> None:
        """Until CRIU may connect to it. Raises `PagerFailed`."""
        try:
            async with asyncio.timeout(_READY):
                await self._until("ready", lambda _: None)
        except TimeoutError:
            raise PagerFailed(detail=f"it was not ready within {_READY:.0f} s") from None

    async def restored(self, heard: Heard = lambda _: None) -> None:
        """Until it has all that CRIU's restore gave it, and so have we; for as long as that takes.

        `heard` is told all that it says. Before, memory is lost with the pager; from then on
        another can take its place. Raises `PagerFailed`.
        """
        await self._until("restored", heard)

    def fill(self) -> None:
        """From now on it gives the process all of its memory, not only what is touched."""
        self.say(fill=True)

    def say(self, *fds: int, **what: Any) -> None:
        """Tell it; said into the void where it was killed."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [msgpack.packb(what)], fds)

    async def filled(self, heard: Heard) -> int:
        """Until all is in place; `heard` is told all that the pager says.

        Returns how often a page was touched that was not. Raises `PagerFailed`.
        """
        for _ in range(_TRIES):
            try:
                message = await self._until("filled", heard)
            except PagerFailed as error:
                failure = error
            else:
                self._let_go()
                return int(message.get("faults", 0))
            if self._process is not None:
                self._process.wait()
            self._socket.close()
            self._start()
            self.replaced()
        raise failure

    async def _until(self, what: str, heard: Heard) -> dict[str, Any]:
        while True:
            message = await self._hear()
            heard(message)
            if what in message:
                return message

    async def _hear(self) -> dict[str, Any]:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _LARGEST, _FDS)
                break
            except BlockingIOError:
                await self._readable()
            except OSError:
                data = b""
                break
        if not data:
            raise PagerFailed(detail="the pager was killed")
        message: dict[str, Any] = msgpack.unpackb(data)
        if "space" in message and len(fds) == _FDS:
            self._spaces.append((int(message["space"]), int(message["origin"]), *fds))
        return message

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._socket, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._socket)

    def _let_go(self) -> None:
        """Our descriptors first: after the pager's, nobody would answer."""
        self._close_spaces()
        with contextlib.suppress(OSError):
            self._socket.send(msgpack.packb({"end": True}))

    def _close_spaces(self) -> None:
        for _, _, *fds in self._spaces:
            for fd in fds:
                os.close(fd)
        self._spaces.clear()

    def end(self) -> None:
        """Nobody needs it any more: nothing was restored, or what was has been killed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Let it go; it ends by itself. Idempotent."""
        self._socket.close()
        if self._process is not None:
            self._process.poll()
        self._close_spaces()
