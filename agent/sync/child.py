"""An rsync of this agent as a child: its two streams, what it says, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from agent import offspring
from agent.sync import rsync
from agent.sync.rsync import Pass

PIECE = 1 << 18  # bytes read from it at once
_CLEARING = 2.0  # seconds
_PATIENCE = 20.0  # seconds for it to start
_SAID = 16 << 10  # bytes of its messages that are kept
# What rsync takes for ssh: it hands rsync's descriptors over, and is gone.
_SHELL = b"""import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as agent:
    socket.send_fds(agent, [b"x"], [0, 1])
"""


class Child:
    """One rsync. Its `input` and `output` are those of its protocol."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._ended = asyncio.Event()
        self._said = bytearray()
        self.harmless = False  # it writes nothing, so that it may be killed
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._over)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        loop.add_reader(process.stderr.fileno(), self._listen)
        self._transports: list[asyncio.BaseTransport] = []
        self.input: asyncio.StreamWriter
        self.output: asyncio.StreamReader

    async def connect(self, read: IO[bytes], write: IO[bytes]) -> None:
        """Have these as the ends of its output and input."""
        self.output, transport = await reader(read)
        self._transports.append(transport)
        self.input = await writer(write)

    async def feed(self, data: bytes) -> None:
        """Give it this, and wait until it has room; nothing where it has ended, or ends:
        its status tells why."""
        if not self.input.is_closing():  # asyncio would log every write from then on
            with contextlib.suppress(OSError):
                self.input.write(data)
                await self.input.drain()

    def _over(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._process.wait()
        self._listen()
        self._ended.set()

    def _listen(self) -> None:
        """Take what it says; the beginning of it says most."""
        assert self._process.stderr is not None
        with contextlib.suppress(BlockingIOError, ValueError):
            while data := os.read(self._process.stderr.fileno(), PIECE):
                self._said += data[: _SAID - len(self._said)]
            asyncio.get_running_loop().remove_reader(self._process.stderr.fileno())

    @property
    def said(self) -> list[str]:
        return self._said.decode(errors="replace").splitlines()

    async def status(self) -> int:
        """Its exit status, when it has ended."""
        await self._ended.wait()
        assert self._process.returncode is not None
        return self._process.returncode

    def close(self) -> None:
        """End it, if it has not. Idempotent."""
        loop = asyncio.get_running_loop()
        for transport in self._transports:
            transport.close()
        if hasattr(self, "input"):
            _abort(self.input)
        loop.remove_reader(self._pidfd)
        if self._process.returncode is None:
            if self.harmless:
                self._process.kill()
            else:
                self._process.terminate()  # it takes 0.4 s to clear away what is half written
            try:
                self._process.wait(timeout=_CLEARING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stderr is not None and not self._process.stderr.closed:
            loop.remove_reader(self._process.stderr.fileno())
            self._process.stderr.close()
            os.close(self._pidfd)
        self._ended.set()


def _abort(stream: asyncio.StreamWriter) -> None:
    if not stream.is_closing():
        stream.transport.abort()


async def reader(file: IO[bytes]) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    """A stream of what comes from a pipe or socket."""
    stream = asyncio.StreamReader(limit=PIECE)
    protocol = asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
    return stream, transport


async def writer(file: IO[bytes]) -> asyncio.StreamWriter:
    """A stream into a pipe or socket."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
    return asyncio.StreamWriter(transport, protocol, None, loop)


def _start(
    arguments: Sequence[str], writable: Sequence[str] | None, pass_fds: Sequence[int], stdout: int
) -> subprocess.Popen[bytes]:
    may_write = ["all"] if writable is None else [str(len(writable)), *writable]
    command, more = offspring.command(
        "agent.sync.launch", [str(os.getpid()), *may_write, *arguments]
    )
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd="/",
        pass_fds=(*pass_fds, *more),
        start_new_session=True,
    )


async def start_server(writable: Sequence[str], one: Pass) -> Child:
    """The receiver, which may write in these directories alone. Raises `OSError`."""
    arguments = rsync.server(one)
    process = _start(arguments, writable, (), subprocess.PIPE)
    child = Child(process)
    assert process.stdin is not None and process.stdout is not None
    await child.connect(process.stdout, process.stdin)
    return child


class Client(Child):
    """The sender: also takes the names of what it is to send."""

    names: asyncio.StreamWriter

    def send(self, names: Sequence[str]) -> None:
        """Absolute paths; no more can follow."""
        self.names.write(b"".join(os.fsencode(name[1:]) + b"\0" for name in names))
        self.names.close()

    def close(self) -> None:
        _abort(self.names)
        super().close()


async def start_client(one: Pass, but: Iterable[str] = ()) -> Client:
    """`but`: paths that stay. Raises `OSError`, `TimeoutError`."""
    ours, theirs = socket.socketpair()
    script = os.memfd_create("rsync-shell", 0)
    try:
        os.write(script, _SHELL)
        shell = f"'{sys.executable}' -IS /proc/self/fd/{script} {theirs.fileno()}"
        arguments = rsync.client(shell, one, but)
        fds = (script, theirs.fileno())
        process = _start(arguments, None, fds, subprocess.DEVNULL)
    finally:
        os.close(script)
        theirs.close()
    child = Client(process)
    child.harmless = True
    with ours:
        ours.setblocking(False)
        assert process.stdin is not None
        child.names = await writer(process.stdin)
        try:
            async with asyncio.timeout(_PATIENCE):
                read, write = await _handed_over(ours)
        except BaseException:
            child.close()
            raise
    await child.connect(os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0))
    return child


async def _handed_over(ours: socket.socket) -> tuple[int, int]:
    """rsync's two descriptors, from its shell. Raises `OSError` where that has gone without."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(ours, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(ours)
    _, fds, _, _ = socket.recv_fds(ours, 1, 2, socket.MSG_CMSG_CLOEXEC)
    if len(fds) != 2:
        raise OSError("rsync has not started")
    return fds[0], fds[1]


def find() -> str | None:
    """Where rsync is on this host."""
    return shutil.which("rsync", path=rsync.ENVIRONMENT["PATH"])
