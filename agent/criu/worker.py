"""A CRIU process that is started ahead of the blackout and then told what to do (`criu swrk`).

It speaks CRIU's RPC over a socket pair; a request is one protobuf message, and so is the answer.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.criu import messages
from agent.criu.hiding import Hiding
from agent.errors import AgentError
from agent.kernel.seccomp import Filter
from agent.kernel.syscalls import readable

# struct page_server_iov, criu/page-xfer.c: command, pages, address, id; PS_IOV_CLOSE
_NO_PAGES = struct.pack("=I4xQQQ", 0x1023, 0, 0, 0)
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_LOG_LEVEL = 2  # errors and warnings
_GHOST_LIMIT = 64 << 20  # bytes of a deleted file that goes into the images
_MAX_MESSAGE = 1 << 20
_ERROR_LINE = re.compile(r"Error \([^)]*\): (.*)")
_HARMLESS = re.compile(r"rlimit: Can't setup RLIMIT_NOFILE for self")  # it then does with less


class CriuMissing(AgentError):
    code = "criu-missing"
    template = "CRIU is not installed"
    hint_template = "Install CRIU 4.2 or later (Debian: package criu of forky or sid)."


class CriuError(AgentError):
    code = "criu"
    template = "CRIU could not {action} the process: {detail}"
    hint_template = "docs/troubleshooting.md lists what CRIU cannot do; its log: {log}"


def errors(log: str) -> list[str]:
    """What CRIU's log has of errors, from the first that matters on."""
    found = [line.strip() for line in _ERROR_LINE.findall(log)]
    return [line for line in found if not _HARMLESS.match(line)]


def find_criu() -> str:
    """The path of the criu program, or `CriuMissing`."""
    path = shutil.which("criu", path=_ENVIRONMENT["PATH"])
    if path is None:
        raise CriuMissing()
    return path


class CriuWorker:
    """One `criu swrk` process; it serves one dump or one restore."""

    def __init__(
        self,
        images: Path,
        log_name: str,
        filtered: Filter | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it. `images` is the directory CRIU reads or writes; `pass_fds` keep their numbers.

        `filtered`: what it asks the kernel is answered by us. Not for a process with a seccomp
        filter, which CRIU could not suspend then.

        Raises `CriuMissing` or `OSError`.
        """
        self._images = images
        self._log = images / log_name
        self._log_name = log_name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pages, server = socket.socketpair()
        self._page_server = server.fileno()
        with theirs, server:
            self._socket = ours
            self._process = subprocess.Popen(
                [find_criu(), "swrk", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd=images,
                pass_fds=(theirs.fileno(), server.fileno(), *pass_fds),
                start_new_session=True,
                umask=0o077,
                preexec_fn=None if filtered is None else filtered.install,
            )
        listener = filtered.listener() if filtered is not None else None
        self.hiding = Hiding(listener) if listener is not None else None
        ours.setblocking(False)
        self.busy = False  # it holds the process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def dump(self, pid: int, *, shell_job: bool, lazy: bool = False) -> None:
        """Dump the tree of `pid` into the images directory, leaving it stopped.

        `lazy`: without its private anonymous memory, of which only the addresses are written.
        """
        request = self._request(messages.DUMP, shell_job, lazy)
        request.opts.pid = pid
        if lazy:
            # CRIU would serve the pages itself; over a socket of ours, on which nobody asks.
            config = self._images / "criu.conf"
            config.write_text(f"ps-socket {self._page_server}\n")
            request.opts.config_file = str(config)
            self._pages.sendall(_NO_PAGES)
        await self._call(request, "dump")
        if self.hiding is not None:
            self.hiding.check(self._images)

    async def restore(self, inherit: dict[str, int], *, shell_job: bool, lazy: bool = False) -> int:
        """Restore from the images directory, stopped; `inherit` maps keys to `pass_fds`.

        `lazy`: an `agent.memory.pager` waits in that directory. Returns the PID of the tree's root.
        """
        request = self._request(messages.RESTORE, shell_job, lazy)
        for key, fd in inherit.items():
            request.opts.inherit_fd.add(key=key, fd=fd)
        response = await self._call(request, "restore")
        return int(response.restore.pid)

    def _request(self, kind: int, shell_job: bool, lazy: bool) -> Any:
        request = messages.Request(type=kind)
        opts = request.opts
        opts.log_level = _LOG_LEVEL
        opts.log_file = self._log_name
        opts.tcp_close = True  # established sockets are ours: CRIU records them, no more
        opts.network_lock = messages.NETWORK_LOCK_SKIP
        opts.leave_stopped = True
        opts.manage_cgroups_mode = messages.CGROUPS_IGNORE
        opts.file_locks = True
        opts.ghost_limit = _GHOST_LIMIT
        opts.shell_job = shell_job
        opts.lazy_pages = lazy
        return request

    async def _call(self, request: Any, action: str) -> Any:
        directory = os.open(self._images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        loop = asyncio.get_running_loop()
        try:
            request.opts.images_dir_fd = directory
            self.busy = True
            await loop.sock_sendall(self._socket, request.SerializeToString())
            answer = await loop.sock_recv(self._socket, _MAX_MESSAGE)
        except OSError as error:
            self.busy = False
            raise self._error(action, str(error)) from error
        finally:
            os.close(directory)
        self.busy = False
        if not answer:
            raise self._error(action, "it ended without an answer")
        response = messages.Response.FromString(answer)
        if not response.success:
            detail = response.cr_errmsg or os.strerror(response.cr_errno or 0)
            raise self._error(action, detail.strip())
        return response

    def _error(self, action: str, detail: str) -> CriuError:
        """The first error of CRIU's log says more than its answer does."""
        try:
            lines = errors(self._log.read_text(errors="replace"))
        except OSError:
            lines = []
        log = "; ".join(lines[-4:]) or "empty"
        return CriuError(action=action, detail=lines[0] if lines else detail, log=log)

    def wait_idle(self, seconds: float) -> None:
        """Wait for an answer that nobody awaits any more. Blocks; bounded."""
        if self.busy:
            readable(self._socket.fileno(), seconds)
            self.busy = False

    def close(self) -> None:
        """End the process (it ends by itself when the socket closes) and reap it."""
        self._socket.close()
        self._pages.close()
        if self._process.poll() is None:
            try:
                self._process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self.hiding is not None:
            self.hiding.close()
