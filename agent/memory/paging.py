"""The agent's side of the pager: start it, await what it says, replace it when it was killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from agent import offspring
from agent.errors import AgentError

_READY = 10.0  # seconds for it to come up, and to say that it has what CRIU has given it
_LARGEST = 1 << 16  # bytes of a message
_FDS = 2  # of a space
_TRIES = 3  # pagers that may die


class PagerFailed(AgentError):
    code = "pager"
    template = "the memory could not be given to the restored process: {detail}"
    hint_template = "Run it again; `--memory stop` goes without."


class Paging:
    """The pagers of one migration. One is started ahead, and goes on when we have gone."""

    def __init__(self, images: Path) -> None:
        """Raises `OSError`."""
        self._images = str(images)
        self._spaces: list[tuple[int, int, int]] = []  # PID, userfaultfd, store
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket = ours
        spaces = [":".join(map(str, one)) for one in self._spaces]
        fds = [fd for _, *pair in self._spaces for fd in pair]
        with theirs:
            arguments = [self._images, str(theirs.fileno()), *spaces]
            self._process = offspring.start(
                "agent.memory.pager", arguments, [theirs.fileno(), *fds]
            )

    async def ready(self) -> None:
        """Until CRIU may connect to it. Raises `PagerFailed`."""
        await self._soon("ready")

    async def restored(self) -> None:
        """Until it has all that CRIU's restore gave it, and so have we. Raises `PagerFailed`.

        Before, memory is lost with the pager; from then on another can take its place.
        """
        await self._soon("restored")

    async def _soon(self, what: str) -> None:
        try:
            async with asyncio.timeout(_READY):
                await self._until(what, lambda _: None)
        except TimeoutError:
            raise PagerFailed(detail=f"it was not {what} within {_READY:.0f} s") from None

    def fill(self) -> None:
        """From now on it gives the process all of its memory, not only what is touched."""
        with contextlib.suppress(OSError):
            self._socket.send(msgpack.packb({"fill": True}))

    async def filled(self, left: Callable[[int], None]) -> int:
        """Until all is in place; `left` is told the bytes that are not.

        Returns how often a page was touched that was not. Raises `PagerFailed`.
        """
        for _ in range(_TRIES):
            try:
                message = await self._until("filled", left)
            except PagerFailed as error:
                failure = error
            else:
                self._let_go()
                return int(message.get("faults", 0))
            self._process.wait()
            self._socket.close()
            self._start()
        raise failure

    async def _until(self, what: str, left: Callable[[int], None]) -> dict[str, Any]:
        while True:
            message = await self._hear()
            if "left" in message:
                left(int(message["left"]))
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
            self._spaces.append((int(message["space"]), fds[0], fds[1]))
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
        for _, *fds in self._spaces:
            for fd in fds:
                os.close(fd)
        self._spaces.clear()

    def end(self) -> None:
        """Nobody needs it any more: nothing was restored, or what was has been killed."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it go; it ends by itself. Idempotent."""
        self._socket.close()
        self._process.poll()
        self._close_spaces()
