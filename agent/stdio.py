"""The agent's own byte stream, moved off descriptors 0 and 1 before anything can print.

sshd gives a session either two pipes or one socket for both directions. asyncio's pipe
transports cannot share a socket, so this reads and writes plain descriptors.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable

READ_SIZE = 1 << 18
HIGH_WATER = 1 << 22
LOW_WATER = 1 << 20


def guard_stdio() -> tuple[int, int]:
    """Save descriptors 0 and 1 as (read, write); 0 becomes /dev/null and 1 becomes stderr.

    From here on nothing that prints, and no child, can write into the protocol. Raises
    `OSError` where one of the three is closed.
    """
    read_fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    write_fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return read_fd, write_fd


class StdioTransport:
    """Non-blocking reading and buffered writing of the two saved descriptors.

    `received` is called with each chunk; what it raises ends the reading and is kept in
    `failure`. `ended` is set at the end of input, or when either direction fails.
    """

    def __init__(self, read_fd: int, write_fd: int, received: Callable[[bytes], None]) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._received = received
        self._buffer = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._broken = False
        self.ended = asyncio.Event()
        self.failure: Exception | None = None
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._read_fd, self._readable)

    def write(self, data: bytes) -> None:
        """Send `data` now or when there is room; dropped once the other side is gone."""
        if self._broken:
            return
        self._buffer += data
        if not self._writing:
            self._flush()
        if len(self._buffer) > HIGH_WATER:
            self._room.clear()

    async def drain(self) -> None:
        """Wait while more than `HIGH_WATER` bytes are unsent; returns at once when broken."""
        await self._room.wait()

    def close(self) -> None:
        """Stop reading and writing; closes both descriptors."""
        self._stop_reading()
        self._break()
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.failure = error
            data = b""
        if not data:
            self._stop_reading()
            return
        try:
            self._received(data)
        except Exception as error:  # told through `failure`; the agent must unwind, not vanish
            self.failure = error
            self._stop_reading()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._read_fd)
        self.ended.set()

    def _flush(self) -> None:
        try:
            while self._buffer:
                sent = os.write(self._write_fd, memoryview(self._buffer)[:READ_SIZE])
                del self._buffer[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.failure = self.failure or error
            self._break()
            self.ended.set()
            return
        if self._buffer and not self._writing:
            self._writing = True
            self._loop.add_writer(self._write_fd, self._flush)
        elif not self._buffer and self._writing:
            self._writing = False
            self._loop.remove_writer(self._write_fd)
        if len(self._buffer) <= LOW_WATER or not self._buffer:
            self._room.set()

    def _break(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._write_fd)
        self._broken = True
        self._buffer.clear()
        self._room.set()
