"""The source's end of bringing a file with holes: its data, and only what the destination lacks."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import astuple

from agent.errors import ProtocolError, shown
from agent.image.records import Record
from agent.kernel import proc
from agent.link import Link
from agent.sync import places, sparse
from agent.sync.sparse import NONE, SAME, SOME, Attributes, Sparse

_PIECE = 1 << 20  # bytes of a record
_LONGEST = 4000  # bytes of a path that can be opened as one


class SparseSource:
    """Brings such files one after the other."""

    def __init__(
        self,
        link: Link,
        answer: Callable[[str], Awaitable[Record]],
        went: Callable[[int], Awaitable[None]],
    ) -> None:
        """`answer`: the destination's next word, of this name; `went` is told bytes that go, and
        waits until more may."""
        self._link, self._answer, self._went = link, answer, went

    async def bring(self, files: Iterable[Sparse], *, first: bool) -> set[str]:
        """Bring these; the paths that are done with. The others are for rsync: those with several
        names, which it links, and those that have gone, or have no holes after all.

        `first`: it makes a file that differs anew, as rsync does, and lets be one of the same size
        and time; else the file is brought up to date. Raises `SyncFull`, `SyncFailed`.
        """
        known: set[tuple[int, int]] = set()
        done = set()
        for one in sorted(files, key=lambda one: -one.holes)[: sparse.MOST]:
            if one.links > 1 and (not first or one.inode in known):
                continue
            known.add(one.inode)
            try:
                if await self._bring(one.path, first) and one.links == 1:
                    done.add(one.path)
            except OSError as error:
                raise sparse.failed(proc.printable(one.path), error) from error
        return done

    async def _bring(self, path: str, first: bool) -> bool:
        if len(os.fsencode(path)) > _LONGEST:
            return False
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(path, flags)
        except OSError:
            return False  # rsync says why, if it is not gone
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or not sparse.has_hole(fd, found.st_size):
                return False
            has = await self._announce(fd, path, found.st_size, first)
            if has != SAME:
                await self._data(fd, found.st_size, compare=has == SOME)
                self._link.send({"kind": "sync", "op": "whole"})
                await self._answer("written")
            return True
        finally:
            os.close(fd)

    async def _announce(self, fd: int, path: str, size: int, first: bool) -> str:
        *plain, xattrs = astuple(Attributes.of(fd))
        self._link.send({
            "kind": "sync", "op": "sparse", "path": os.fsencode(path), "size": size,
            "first": first, "attributes": plain,
            "xattrs": [[os.fsencode(name), value] for name, value in xattrs.items()],
            "parents": [list(one) for one in places.of([], [path])],
        })  # fmt: skip
        has = (await self._answer("sparse")).get("has")
        if has not in (SAME, NONE, SOME):
            raise ProtocolError(detail=f"the destination has {shown(has)} of a file")
        return str(has)

    async def _data(self, fd: int, size: int, *, compare: bool) -> None:
        start = 0
        while rows := await asyncio.to_thread(sparse.extents, fd, start, size):
            start = sum(rows[-1])
            digests = await asyncio.to_thread(sparse.digests, fd, rows) if compare else b""
            self._link.send({"kind": "sync", "op": "extents", "rows": rows, "digests": digests})
            await self._went(len(digests))
            wanted = (await self._answer("wanted")).get("blocks")
            blocks = list(sparse.blocks(rows))
            if not isinstance(wanted, bytes) or len(wanted) != (len(blocks) if compare else 0):
                raise ProtocolError(detail="the destination wants blocks that there are not")
            if compare:
                blocks = [one for one, want in zip(blocks, wanted, strict=True) if want]
            await self._blocks(fd, blocks)

    async def _blocks(self, fd: int, blocks: list[tuple[int, int]]) -> None:
        most = _PIECE // sparse.BLOCK
        for at in range(0, len(blocks), most):
            data = await asyncio.to_thread(_read, fd, blocks[at : at + most])
            self._link.send({"kind": "sync", "op": "blocks", "data": data})
            await self._went(len(data))


def _read(fd: int, blocks: list[tuple[int, int]]) -> bytes:
    return b"".join(sparse.read(fd, *one) for one in blocks)
