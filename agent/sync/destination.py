"""The destination's end: the plan says what may come, and rsync may write nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple, Unpack

from agent.errors import PeerLost, ProtocolError, shown
from agent.image.records import Record
from agent.kernel import proc
from agent.link import Link
from agent.plan import Plan
from agent.probe import files
from agent.probe.facts import FileFacts, FileProblem, validate
from agent.sync import changes, places
from agent.sync.changes import Moment
from agent.sync.child import PIECE, Child, start_server
from agent.sync.errors import SyncFailed, SyncFull
from agent.sync.paths import MAX_PATHS, writable
from agent.sync.rsync import Pass
from agent.sync.sparse import SAME
from agent.sync.sparse_destination import SparseFile, checked_path
from agent.tasks import apart, together

SAY_EVERY = 5.0  # seconds
_T = TypeVar("_T")
_Given = TypeVarTuple("_Given")
_ENDING = 60.0  # seconds for rsync to end once the source's has: it writes to the disk
_SAID = 4000  # characters of its messages that are told


class SyncDestination:
    """The files of one migration."""

    def __init__(self, plan: Plan, link: Link, gets_on: Callable[[], None]) -> None:
        """`gets_on` is called while all is well."""
        self._dirs, self._files = plan.sync_dirs, plan.sync_files
        self._made = [*plan.sync_dirs, *plan.sync_places]
        self._planned = plan.syncs
        self._link = link
        self._gets_on = gets_on
        self._server: Child | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._pass = Pass.FIRST
        self._begun: Moment
        self._over = False  # what began has ended, or is not wanted
        self._sparse: SparseFile | None = None
        self._late = False  # such a file came in the blackout

    async def take(self, record: Record) -> None:
        """A record of the source; waits until rsync has room for it.

        Raises `ProtocolError` for what was not planned, `SyncPathBlocked`, `SyncFull`,
        `SyncFailed`.
        """
        if not self._planned:
            raise ProtocolError(detail="files came, and none were planned")
        self._gets_on()
        op = record.get("op")
        if op == "begin":
            await self._begin(record)
        elif op == "data":
            await self._data(record.get("data"))
        elif op == "end":
            self._end()
        elif op == "drop":
            self._over = True  # ended later: that takes time, and the process stands still
            if self._late:
                self._flush()
            self._stop_tasks()
            if self._server is not None:
                self._server.harmless = True  # nobody has named a file to it
        elif op in ("sparse", "extents", "blocks", "whole"):
            await self._take_sparse(op, record)
        elif op == "compare":
            await self._compare(record.get("files"))
        else:
            raise ProtocolError(detail=f"the source sent {shown(op)} about files")

    async def _begin(self, record: Record) -> None:
        if self._server is not None and not self._over:
            raise ProtocolError(detail="files came for a second time at once")
        self.close()
        self._over = False
        try:
            self._pass = Pass(str(record.get("pass")))
        except ValueError:
            raise ProtocolError(detail="files came, and not how") from None
        parents = places.from_rows(record.get("parents"))
        await asyncio.to_thread(places.make, self._made, self._files, parents)
        try:
            where = writable(self._dirs, self._files)
            self._begun = Moment()
            self._server = await start_server(where, self._pass)
        except OSError as error:
            raise SyncFailed(detail=f"rsync does not start: {error}") from error
        self._tasks = [
            asyncio.create_task(self._pump(self._server)),
            asyncio.create_task(self._alive()),
        ]
        self._link.send({"kind": "sync", "op": "ready"})

    async def _data(self, data: object) -> None:
        if not isinstance(data, bytes):
            raise ProtocolError(detail="a malformed piece of what rsync says")
        if not data:
            return  # a sign of life
        server = self._server
        if server is None:
            raise ProtocolError(detail="a piece of what rsync says, and none listens")
        async with together(server.feed(data)) as feeding:
            while not (await asyncio.wait(feeding, timeout=SAY_EVERY))[0]:
                self._gets_on()  # a slow disk
        if not self._over:
            self._link.send({"kind": "sync", "op": "taken", "size": min(len(data), PIECE)})

    def _end(self) -> None:
        server = self._server
        if server is None or self._over:
            raise ProtocolError(detail="files ended that had not begun")
        self._over = True
        with contextlib.suppress(OSError):
            server.input.close()
        self._tasks.append(asyncio.create_task(self._ended(server, *self._tasks)))
        if self._pass == Pass.LAST:
            self._flush()

    def _flush(self) -> None:
        """Beside what comes next."""
        work = asyncio.to_thread(_flush, self._begun, self._dirs, self._files)
        self._flushing = apart(work)

    async def _ended(
        self, server: Child, pumping: asyncio.Task[None], alive: asyncio.Task[None]
    ) -> None:
        """Say how rsync has ended; it looks for the end of its own child every 20 ms."""
        try:
            async with asyncio.timeout(_ENDING):
                status = await server.status()
                await pumping
        except TimeoutError:
            status = -1
        said = "\n".join(server.said)[:_SAID]
        with contextlib.suppress(PeerLost):
            self._link.send({"kind": "sync", "op": "ended", "status": status, "said": said})
        alive.cancel()

    async def _pump(self, server: Child) -> None:
        """Send what rsync writes, and that it has ended: where it was not to, so does the
        source's."""
        with contextlib.suppress(PeerLost):
            while data := await server.output.read(PIECE):
                self._link.send({"kind": "sync", "op": "data", "data": data})
                await self._link.drain()
            self._link.send({"kind": "sync", "op": "data", "data": b""})

    async def _alive(self) -> None:
        """Say so now and then, as rsync may be busy for long without a word."""
        with contextlib.suppress(PeerLost):
            while True:
                await asyncio.sleep(SAY_EVERY)
                self._link.send({"kind": "sync", "op": "alive"})

    async def _take_sparse(self, op: str, record: Record) -> None:
        """A file with holes, which rsync is not given (`agent.sync.sparse`)."""
        if op == "sparse":
            if self._sparse is not None:
                raise ProtocolError(detail="a file came before the one before it was whole")
            path = checked_path(record, self._dirs, self._files)
            parents = places.from_rows(record.get("parents"))
            await self._aside(places.make, [], [path], parents)
            self._sparse = SparseFile(path, record)
            has = await self._aside(self._sparse.open)
            if has == SAME:
                self._end_sparse()
            self._link.send({"kind": "sync", "op": op, "has": has})
            return
        if (file := self._sparse) is None:
            raise ProtocolError(detail="data of a file, and none was named")
        if op == "extents":
            wanted = await self._aside(file.extents, record)
            self._link.send({"kind": "sync", "op": "wanted", "blocks": wanted})
        elif op == "blocks":
            await self._aside(file.blocks, record.get("data"))
            self._link.send({"kind": "sync", "op": "alive"})
        else:
            self._late = self._pass == Pass.LAST
            await self._aside(file.whole, not self._late)
            self._end_sparse()
            self._link.send({"kind": "sync", "op": "written"})

    async def _aside(self, work: Callable[[Unpack[_Given]], _T], *given: *_Given) -> _T:
        """Have it done in a thread, and say now and then that it is under way."""
        async with together(asyncio.to_thread(work, *given)) as tasks:
            while not (await asyncio.wait(tasks, timeout=SAY_EVERY))[0]:
                self._gets_on()
                self._link.send({"kind": "sync", "op": "alive"})
            done: _T = tasks[0].result()
            return done

    def _end_sparse(self) -> None:
        if self._sparse is not None:
            self._sparse.close()
            self._sparse = None

    async def _compare(self, rows: object) -> None:
        if not isinstance(rows, list) or len(rows) > 16 * MAX_PATHS:
            raise ProtocolError(detail="files to compare that are none, or too many")
        facts = [validate(row, FileFacts, "a file to compare") for row in rows]
        problems = await asyncio.to_thread(_problems, facts)
        self._link.send({"kind": "sync", "op": "compared", "problems": problems})

    async def on_disk(self) -> None:
        """Wait until all that was brought is on the disk. Raises `SyncFull`, `SyncFailed`."""
        if self._flushing is not None:
            await self._flushing

    def check_over(self) -> None:
        """Raises `ProtocolError` where something is still being brought."""
        if self._sparse is not None or self._server is not None and not self._over:
            raise ProtocolError(detail="the process was sent before its files had come")

    def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def close(self) -> None:
        """End rsync, if it has not, and leave no half of a file. Idempotent."""
        self._stop_tasks()
        self._end_sparse()
        server, self._server = self._server, None
        if server is not None:
            server.close()


def _flush(begun: Moment, dirs: Sequence[str], names: Sequence[str]) -> None:
    """Write to the disk what has come since."""
    for path in changes.since(begun, dirs, names).paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # a symbolic link, or gone since
        try:
            os.fsync(fd)
        except OSError as error:
            where = f"{proc.printable(path)}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SyncFull(detail=where) from error
            raise SyncFailed(detail=where) from error
        finally:
            os.close(fd)


def _problems(facts: list[FileFacts]) -> list[FileProblem]:
    found = (files.compare(one) for one in facts)
    return [one for one in found if one is not None]
