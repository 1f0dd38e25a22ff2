"""Send CRIU's images while CRIU still writes them.

The pages files only grow, so they are followed from the start of the dump; what was sent is
punched out of the tmpfs at once. The other images are small and some are rewritten, so they
follow in the end.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from agent.criu import images, sockets
from agent.image.records import CHUNK, ImageError, Record
from agent.kernel.syscalls import punch_hole
from agent.link import Link

_POLL = 0.001  # seconds between looks at the growing files
_WORTH_SENDING = 128 << 10  # bytes, while there may be more soon
_REPORT_EVERY = 0.1  # seconds between progress reports
_SMALL_RECORD = 4 << 20

Progress = Callable[[int], None]


class Shipper:
    """Sends the directory of one dump as records {"kind": "file", "files": [[name, data]]}."""

    def __init__(self, link: Link, directory: Path, progress: Progress) -> None:
        self._link = link
        self._directory = directory
        self._progress = progress
        self._open: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._reported = 0.0
        self.memory_bytes = 0
        self.file_bytes = 0

    async def follow(self, dumping: asyncio.Task[None]) -> None:
        """Send pages as they appear, until the dump has ended. Raises what the dump raised."""
        while not dumping.done():
            if not await self._send_pages(growing=True):
                await asyncio.wait({dumping}, timeout=_POLL)
        await dumping
        while await self._send_pages(growing=False):
            pass

    async def _send_pages(self, *, growing: bool) -> bool:
        """One chunk of each pages file; false when none had one (worth it, while `growing`)."""
        if growing or not self._open:
            self._discover()
        sent = False
        for name, fd in self._open.items():
            offset = self._sent[name]
            ready = os.fstat(fd).st_size - offset
            if ready < (_WORTH_SENDING if growing else 1):
                continue
            data = os.pread(fd, CHUNK, offset)
            self._link.send({"kind": "file", "files": [[name, data]]})
            self._sent[name] = offset + len(data)
            self.memory_bytes += len(data)
            if growing:
                punch_hole(fd, offset, len(data))
            await self._link.drain()
            self._report()
            sent = True
        return sent

    def _discover(self) -> None:
        for entry in os.scandir(self._directory):
            if entry.name.startswith("pages-") and entry.name not in self._open:
                self._open[entry.name] = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                self._sent[entry.name] = 0

    async def finish(self, inodes: Collection[int], watched: list[Any] | None = None) -> None:
        """Send the other images, with the sockets of `inodes` as inherited files.

        With `watched`, what epoll sets watch of them (`agent.tcp.watched`), they are taken out of
        the images, and it is said where they are to be put.
        """
        self._discover()
        while await self._send_pages(growing=False):
            pass
        places: dict[int, list[sockets.Row]] = {}
        content = self._images()
        if watched is None:
            self._rewrite(content, inodes)
        else:
            places = sockets.remove(content, inodes)
        batch: list[list[object]] = []
        size = 0
        for name, data in content.items():
            self.file_bytes += len(data)
            for start in range(0, max(len(data), 1), CHUNK):
                piece = data[start : start + CHUNK]
                if size + len(piece) > _SMALL_RECORD:
                    self._link.send({"kind": "file", "files": batch})
                    await self._link.drain()
                    batch, size = [], 0
                batch.append([name, piece])
                size += len(piece)
        self._link.send({"kind": "file", "files": batch})
        end: Record = {"kind": "end"}
        if watched is not None:
            end |= {"places": [list(one) for one in places.items()], "watched": watched}
        self._link.send(end)
        self._progress(self.memory_bytes)

    def _images(self) -> dict[str, bytes]:
        return {
            entry.name: Path(entry.path).read_bytes()
            for entry in os.scandir(self._directory)
            if entry.name.endswith(".img") and entry.name not in self._open
        }

    @staticmethod
    def _rewrite(content: dict[str, bytes], inodes: Collection[int]) -> None:
        files, ids, found = images.rewrite_files(content["files.img"], inodes)
        if len(found) != len(inodes):
            raise ImageError(detail=f"{len(inodes) - len(found)} sockets are not in CRIU's images")
        content["files.img"] = files
        if ids:
            for name in content:
                if name.startswith("fdinfo-"):
                    content[name] = images.rewrite_fdinfo(content[name], ids)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported > _REPORT_EVERY:
            self._reported = now
            self._progress(self.memory_bytes)

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
