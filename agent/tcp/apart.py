"""Wakes the peers of a process that may stand still in the middle of a call on its sockets.

Where memory is missing that the call needs, it has the socket's lock until that memory has come,
and whoever asks the socket for anything waits, and cannot be killed. Who brings the memory must
not: so a child does it, which has nothing but the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection

import msgpack

from agent.tcp.wake import Waking, steps

_MOST_FDS = 1 << 30
_AT_ONCE = 1 << 16  # bytes read at once


async def wake(streams: list[Waking]) -> None:
    """As `agent.tcp.wake.wake`; our own sockets are closed at once. Raises `OSError`.

    The child ends by itself, also where nobody waits for it any more.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            pid = os.fork()
            if pid == 0:
                _work(streams, writing)
        finally:
            os.close(writing)
        for waking in streams:
            waking.sock.close()
        report = await _all_of(reading)
    finally:
        os.close(reading)
    _reap(pid)
    if report:  # else it was killed
        for waking, (wake_ms, probes) in zip(streams, msgpack.unpackb(report), strict=True):
            waking.wake_ms, waking.probes = wake_ms, probes


def _reap(pid: int) -> None:
    """It has closed its end, so it has come to its own."""
    os.waitpid(pid, 0)


def _work(streams: list[Waking], writing: int) -> None:
    """The child's; does not return."""
    try:
        _keep_only({writing, *(waking.sock.fileno() for waking in streams)})
        for seconds in steps(streams):
            time.sleep(seconds)
        report = msgpack.packb([[waking.wake_ms, waking.probes] for waking in streams])
        os.set_blocking(writing, True)
        with contextlib.suppress(OSError):  # nobody reads it any more
            while report:
                report = report[os.write(writing, report) :]
    finally:
        os._exit(0)


def _keep_only(fds: Collection[int]) -> None:
    """Close all others: a lock or a pipe of the agent's would live on in them."""
    at = 0
    for fd in [*sorted(fds), _MOST_FDS]:
        os.closerange(at, fd)
        at = fd + 1


async def _all_of(fd: int) -> bytes:
    """What is written to a pipe until its other end is closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    found = b""
    loop.add_reader(fd, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            with contextlib.suppress(BlockingIOError):
                piece = os.read(fd, _AT_ONCE)
                if not piece:
                    return found
                found += piece
    finally:
        loop.remove_reader(fd)
