"""The agent's own byte stream: off descriptors 0 and 1, buffered, and its end noticed."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.errors import ProtocolError
from agent.stdio import HIGH_WATER, LOW_WATER, StdioTransport
from tests.support.polling import settled, until

ROOT = Path(__file__).resolve().parents[2]

GUARD = """
import os, subprocess, sys
from agent.stdio import guard_stdio
read_fd, write_fd = guard_stdio()
print("printed")
sys.stdout.flush()
os.write(1, b"written to 1\\n")
subprocess.run(["sh", "-c", "echo of a child; cat"], check=True)
os.write(write_fd, b"<" + os.read(read_fd, 100) + b">")
"""


@pytest.mark.parametrize("kind", ["pipes", "socket"])
def test_nothing_that_prints_reaches_the_protocol(kind: str) -> None:
    """sshd gives a session two pipes or one socket for both directions."""
    command = [sys.executable, "-c", GUARD]
    if kind == "pipes":
        done = subprocess.run(command, input=b"call", capture_output=True, cwd=ROOT, check=True)
        output, errors = done.stdout, done.stderr
    else:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(b"call")
            ours.shutdown(socket.SHUT_WR)
            done = subprocess.run(
                command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT, check=True
            )
            output, errors = ours.recv(100), done.stderr
    assert output == b"<call>"
    assert errors == b"printed\nwritten to 1\nof a child\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-"])
def test_a_descriptor_that_is_closed_is_said_in_words(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m agent {closed}"],
        input=b"",
        capture_output=True,
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    if closed != "2>&-":
        assert b"streamferry: no stdio to serve on" in done.stderr


class Stream:
    """A transport, the other end of its stream, and what it received."""

    def __init__(self) -> None:
        self.other, ours = socket.socketpair()
        self.other.setblocking(False)
        self.received = bytearray()
        fd = ours.detach()
        self.transport = StdioTransport(fd, os.dup(fd), self._take)
        self.transport.start()

    def _take(self, data: bytes) -> None:
        if data == b"nonsense":
            raise ProtocolError(detail="nonsense")
        self.received += data

    def read(self, limit: int = 1 << 20) -> bytes:
        try:
            return self.other.recv(limit)
        except BlockingIOError:
            return b""


@asynccontextmanager
async def stream() -> AsyncIterator[Stream]:
    one = Stream()
    try:
        yield one
    finally:
        one.transport.close()
        one.other.close()


async def test_what_arrives_is_passed_on_and_the_end_noticed() -> None:
    async with stream() as one:
        one.other.sendall(b"abc")
        await until(lambda: one.received == b"abc")
        assert not one.transport.ended.is_set()
        one.other.shutdown(socket.SHUT_WR)
        await settled(one.transport.ended)
        assert one.transport.failure is None
        one.transport.write(b"last words")  # only the one direction has ended
        assert one.read() == b"last words"


async def test_what_cannot_be_taken_ends_the_reading() -> None:
    async with stream() as one:
        one.other.sendall(b"nonsense")
        await settled(one.transport.ended)
        assert isinstance(one.transport.failure, ProtocolError)
        one.other.sendall(b"more")
        one.transport.write(b"an answer")
        assert one.read() == b"an answer"
        assert one.received == b""


async def test_a_reader_that_is_slow_holds_up_the_writer() -> None:
    data = os.urandom(1 << 20) * 8
    async with stream() as one:
        sent = 0
        while sent < len(data):
            one.transport.write(data[sent : sent + (1 << 18)])
            sent += 1 << 18
            if not one.transport._room.is_set():
                break
        assert HIGH_WATER < len(one.transport._buffer) <= HIGH_WATER + (1 << 18)
        waiting = asyncio.create_task(one.transport.drain())
        read = bytearray()

        def take() -> bool:
            read.extend(one.read())
            return waiting.done()

        await until(take)
        assert len(one.transport._buffer) <= LOW_WATER
        await until(lambda: take() and len(read) == sent)
        assert bytes(read) == data[:sent]


async def test_a_reader_that_is_gone_ends_it() -> None:
    async with stream() as one:
        one.transport.write(bytes(HIGH_WATER + (1 << 20)))
        waiting = asyncio.create_task(one.transport.drain())
        one.other.close()
        await settled(one.transport.ended)
        await asyncio.wait_for(waiting, 20)
        one.transport.write(b"into the void")
        await one.transport.drain()


async def test_a_close_lets_those_go_who_wait_for_room() -> None:
    one = Stream()
    one.transport.write(bytes(HIGH_WATER + (1 << 20)))
    waiting = asyncio.create_task(one.transport.drain())
    await asyncio.sleep(0)
    one.transport.close()
    await asyncio.wait_for(waiting, 20)
    assert one.transport.ended.is_set()
    one.other.close()
