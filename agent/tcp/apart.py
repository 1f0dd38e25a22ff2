"""Wakes the peers of a process that may stand still in the middle of a call on its sockets.

Where memory is missing that the call needs, it has the socket's lock until that memory has come,
and whoever asks the socket for anything waits, and cannot be killed. Who brings the memory must
not: so a child does it, which has nothing but the sockets. A thread of it asks; should that wait
for too long, the other lets go of all sockets, or an end that the process makes would not reach its
peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Collection
from typing import Any, cast

import msgpack

from agent.tcp.wake import GIVE_UP, Waking, steps

_AT_ONCE = 1 << 16  # bytes read at once
_PATIENCE = GIVE_UP + 0.5  # seconds
_REAPS, _REAP_EVERY = 50, 0.01  # it may wait after its last word, too

_libc = ctypes.CDLL(None, use_errno=True)


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
    await _reap(pid)
    if report:  # else it was killed
        for waking, (wake_ms, probes) in zip(streams, msgpack.unpackb(report), strict=True):
            waking.wake_ms, waking.probes = wake_ms, probes


async def _reap(pid: int) -> None:
    for _ in range(_REAPS):
        if _reaped(pid):
            return
        await asyncio.sleep(_REAP_EVERY)


def _reaped(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] != 0


class _Socket:
    """As much of a socket as is needed, whose calls do not keep Python to themselves."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        value, length = ctypes.create_string_buffer(size), ctypes.c_uint(size)
        if _libc.getsockopt(self._fd, level, option, value, ctypes.byref(length)) < 0:
            raise OSError(ctypes.get_errno(), "getsockopt")
        return value.raw[: length.value]

    def setsockopt(self, level: int, option: int, value: int) -> None:
        number = ctypes.c_int(value)
        size = ctypes.c_uint(ctypes.sizeof(number))
        if _libc.setsockopt(self._fd, level, option, ctypes.byref(number), size) < 0:
            raise OSError(ctypes.get_errno(), "setsockopt")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _work(streams: list[Waking], writing: int) -> None:
    """The child's; does not return."""
    try:
        _keep_only({writing, *(waking.sock.fileno() for waking in streams)})
        for waking in streams:
            waking.sock = cast(Any, _Socket(waking.sock.detach()))
        asks = threading.Thread(target=_ask, args=(streams,), daemon=True)
        asks.start()
        asks.join(_PATIENCE)
        for waking in streams:
            waking.sock.close()
        report = msgpack.packb([[waking.wake_ms, waking.probes] for waking in streams])
        os.set_blocking(writing, True)
        with contextlib.suppress(OSError):  # nobody reads it any more
            while report:
                report = report[os.write(writing, report) :]
        os.close(writing)
    finally:
        os._exit(0)


def _ask(streams: list[Waking]) -> None:
    for seconds in steps(streams):
        time.sleep(seconds)


def _keep_only(fds: Collection[int]) -> None:
    """Close all others: a lock or a pipe of the agent's would live on in them."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in fds:
            with contextlib.suppress(OSError):  # that of the directory itself
                os.close(int(name))


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
