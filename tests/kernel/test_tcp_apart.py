"""Whoever brings the memory wakes the peers of a process that stands still inside a call on its
socket, and does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import platform
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from agent.kernel import userfault
from agent.tcp import apart
from tests.kernel.test_tcp_wake import begin
from tests.support.memory import PAGE, register_missing
from tests.support.netns import Host
from tests.support.polling import until
from tests.support.tcp import connected, echo_works

_LET_GO = 10.0  # seconds until it is freed by somebody else, or the test would wait for ever


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[None]:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def place() -> Iterator[tuple[int, int]]:
    """A userfaultfd of ours, and the address of a page that is missing."""
    fd = ctypes.CDLL(None).syscall(
        userfault.NUMBERS[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK
    )
    userfault.greet(fd, 0)
    page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    register_missing(fd, address, PAGE)
    yield fd, address
    os.close(fd)


def test_it_reads_into_memory_that_is_missing(
    pair: tuple[Host, Host], family: int, place: tuple[int, int]
) -> None:
    server, client = pair
    fd, address = place
    libc = ctypes.CDLL(None)

    def let_go() -> None:
        time.sleep(_LET_GO)
        userfault.zero(fd, address, PAGE)

    with connected(server, client, family) as held:
        waking = begin(server, held)
        number = held.server.fileno()
        reading = asyncio.to_thread(libc.recv, number, ctypes.c_void_p(address), 5, 0)

        async def run() -> int:
            read = asyncio.ensure_future(reading)
            held.client.sendall(b"hello")
            await until(lambda: select.select([fd], [], [], 0)[0])
            waits = asyncio.ensure_future(apart.wake([waking]))
            await until(lambda: waking.sock.fileno() < 0)  # it was begun, and is apart
            assert not read.done()
            userfault.zero(fd, address, PAGE)
            await waits
            return await read

        start = time.monotonic()
        with child(let_go):
            assert asyncio.run(run()) == 5
        assert time.monotonic() - start < _LET_GO
        assert waking.awake and waking.probes >= 1
        assert ctypes.string_at(address, 5) == b"hello"
        held.server.settimeout(10)
        echo_works(held)


def test_another_connection_ends_meanwhile(
    pair: tuple[Host, Host], family: int, place: tuple[int, int]
) -> None:
    """Its peer hears of it, though who has a copy of its socket waits for the first."""
    server, client = pair
    fd, address = place
    with contextlib.ExitStack() as held:
        first, other = (held.enter_context(connected(server, client, family)) for _ in range(2))
        waking = [begin(server, first), begin(server, other)]

        def let_go() -> None:
            for one in (first.server, other.server, *(one.sock for one in waking)):
                one.close()
            time.sleep(2 * _LET_GO)
            userfault.zero(fd, address, PAGE)

        buffer = ctypes.c_void_p(address)
        reading = asyncio.to_thread(ctypes.CDLL(None).recv, first.server.fileno(), buffer, 5, 0)

        async def run() -> None:
            read = asyncio.ensure_future(reading)
            first.client.sendall(b"hello")
            await until(lambda: select.select([fd], [], [], 0)[0])
            await apart.wake(waking)
            assert not waking[0].awake
            other.server.close()
            other.client.settimeout(_LET_GO)
            assert other.client.recv(1) == b""
            assert not read.done()
            userfault.zero(fd, address, PAGE)
            await read

        with child(let_go):
            asyncio.run(run())


def test_nothing_of_ours_lives_on_in_the_child(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    ours, theirs = socket.socketpair()
    with connected(server, client, family) as held, theirs:
        client.command("ip", "link", "set", "dev", "eth0", "down")  # nobody answers
        waking = begin(server, held)

        async def run() -> None:
            waits = asyncio.ensure_future(apart.wake([waking]))
            await until(lambda: waking.sock.fileno() < 0)
            ours.close()
            theirs.settimeout(_LET_GO)
            assert theirs.recv(1) == b""  # the child has not kept the other end
            assert not waits.done()
            await waits

        asyncio.run(run())
        assert not waking.awake and waking.probes > 1
