"""The source's end: brings the files while the process runs, and in the blackout what of them has
changed since.

One pass is one rsync on either host, whose bytes travel as records
{"kind": "sync", "op": "data", "data": bytes} in both directions; docs/image-format.md has the
others. The last pass is ready before the freeze: both have been started, have greeted each other
and wait for names, of which there are often none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from agent.bandwidth import Bandwidth
from agent.errors import PeerLost, ProtocolError, shown
from agent.image.records import Record
from agent.kernel import proc
from agent.link import Link
from agent.plan import Plan
from agent.probe import tree
from agent.probe.facts import FileFacts, FileProblem, validate
from agent.sync import changes, places, rsync
from agent.sync.changes import Changes, Moment
from agent.sync.child import PIECE, Client, start_client
from agent.sync.destination import SAY_EVERY
from agent.sync.errors import SyncDiffers, SyncFailed, SyncRestless, SyncTooMany
from agent.sync.paths import is_in
from agent.sync.rsync import Pass
from agent.sync.sparse import with_holes
from agent.sync.sparse_source import SparseSource
from agent.tasks import apart

_MOST_PASSES = 6  # while the process runs
_SMALL = 16 << 20  # bytes of changed files that are read as fast in the blackout as before it
_SHRINKS = 0.7  # of the pass before; else another brings nothing more
_WINDOW = 8 << 20  # bytes under way: its disk may be slow, and a relayed link keeps what waits
_SILENCE = 4 * SAY_EVERY  # seconds without a word of the destination
_SHARE = 0.5  # of the longest blackout, for files to bring in it
_LOOK_SHARE = 0.25  # of it, to look for them
_SLOWEST = 50 << 20  # bytes a second for a pass too small to tell

Progress = Callable[[int, int], None]


class SyncSource:
    """The files of one migration."""

    def __init__(
        self, plan: Plan, link: Link, progress: Progress, gets_on: Callable[[], None]
    ) -> None:
        """`progress` is told bytes done and to do; `gets_on` is called while all is well."""
        self._dirs, self._files = plan.sync_dirs, plan.sync_files
        self._made = [*plan.sync_dirs, *plan.sync_places]
        self._pid, self._limit = plan.pid, plan.max_blackout
        self._link = link
        self._progress = progress
        self._gets_on = gets_on
        self._sparse = SparseSource(link, self._answer, self._went)
        self._client: Client | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._answers: asyncio.Queue[Record] = asyncio.Queue()
        self._since: Moment | None = None
        self._compared: set[str] = set()
        self._greeted = asyncio.Event()  # by the destination's rsync
        self._under_way = 0  # bytes that it has not taken yet
        self._taken = asyncio.Event()
        self._bandwidth = Bandwidth(plan.bandwidth)
        self._rate = float(_SLOWEST)
        self._looking = 0.0  # seconds that a look for changes takes
        self._last: asyncio.Task[bool] | None = None
        self.left: list[str] = []  # sockets and devices
        self.sent = 0  # bytes over the link, in both directions
        self._to_do = 0
        self._heard = 0.0

    # --- while the process runs

    async def bring(self) -> None:
        """All files, then what has changed meanwhile, until that is little.

        Raises `SyncFull`, `SyncFailed`, `SyncPathBlocked`, `SyncRestless`, `SyncTooMany`.
        """
        async with self._alive():
            begin = Moment()
            everything = await self._look(None)
            self._to_do = everything.total
            self.left = everything.left
            self._progress(0, self._to_do)
            await self._pass([*self._dirs, *self._files], everything, Pass.FIRST)
            self._since = begin
            await self._follow()
            self._progress(max(self.sent, self._to_do), max(self.sent, self._to_do))

    async def settle(self, pids: Iterable[int]) -> None:
        """Once more what has changed; compare all that these processes need; and have the last
        pass ready. Raises as `bring`, and `SyncDiffers`."""
        async with self._alive():
            await self._follow()
            await self._compare_all(list(pids))
            await self._begin(Pass.LAST)
            await self._greeted.wait()  # now it waits for names

    async def _follow(self) -> None:
        before = 0
        for number in range(_MOST_PASSES):
            changed = await self._look(self._since)
            if changed.bytes <= _SMALL or number and changed.bytes > before * _SHRINKS:
                break
            before = changed.bytes
            begin = Moment()
            await self._pass(changed.paths, changed, Pass.AGAIN)
            self._since = begin
        self._judge(changed)

    async def _look(self, moment: Moment | None) -> Changes:
        begin = time.monotonic()
        found = await asyncio.to_thread(changes.since, moment, self._dirs, self._files)
        self._looking = time.monotonic() - begin
        if self._looking > self._limit * _LOOK_SHARE:
            raise SyncTooMany(entries=found.looked_at, seconds=f"{self._looking:.1f}")
        return found

    def _judge(self, changed: Changes) -> None:
        """Raises `SyncRestless` where the rest would hold the process up for too long."""
        seconds = changed.bytes / self._rate
        if seconds > self._limit * _SHARE:
            raise SyncRestless(
                path=proc.printable(changed.largest),
                mebibytes=changed.bytes >> 20,
                seconds=f"{seconds:.1f}",
            )

    async def _pass(self, paths: Collection[str], found: Changes, one: Pass) -> None:
        """Bring these, of which so much was found."""
        begin = time.monotonic()
        first = one == Pass.FIRST
        ours = await self._sparse.bring(found.sparse, first=first)
        names = sorted(set(paths) - ours)
        stay = [*found.left, *ours] if first else []
        if first or names:
            await self._begin(one, stay)
            if not await self._end(names):  # some have changed in the middle of it
                await self._begin(one, stay)
                await self._end(names, final=True)
        if not first and found.bytes > _SMALL:
            self._rate = found.bytes / (time.monotonic() - begin)

    async def _compare_all(self, pids: list[int]) -> None:
        files = await asyncio.to_thread(tree.files, pids)
        self._compared = {one["path"] for one in files}
        problems = await self._compared_there(files)
        changed = set((await self._look(self._since)).paths) if problems else set()
        for one in problems:
            if one["path"] not in changed:  # else it is brought in the blackout
                raise _differs(one)

    async def _compared_there(self, files: list[FileFacts]) -> list[FileProblem]:
        self._link.send({"kind": "sync", "op": "compare", "files": files})
        answer = await self._answer("compared")
        rows = answer.get("problems")
        if not isinstance(rows, list) or len(rows) > len(files):
            raise ProtocolError(detail=f"the destination compared files to {shown(rows)}")
        return [validate(row, FileProblem, "a compared file") for row in rows]

    # --- in the blackout

    def frozen(self, pids: Iterable[int]) -> None:
        """The process stands still, and CRIU has not come yet: bring what has changed."""
        self._bandwidth = Bandwidth(0)  # now it is waited for
        fresh = changes.opened(pids) - self._compared
        self._last = apart(self._bring_last(fresh))

    async def finished(self) -> bool:
        """Whether anything was brought in the blackout, once it has come. Raises as `bring`, and
        `SyncDiffers`."""
        assert self._last is not None
        return await self._last

    async def _bring_last(self, fresh: set[str]) -> bool:
        changed = await self._look(self._since)
        self._judge(changed)
        new = {path for path in fresh if self._brought(path)} - set(changed.paths)
        others = sorted(fresh - new - set(changed.paths))
        if others:
            await self._same(others)
        holed = [*changed.sparse, *filter(None, map(with_holes, new))]
        done = await self._sparse.bring(holed, first=False)
        names = sorted({*changed.paths, *new} - done)
        if not names:
            self._stop_pumps()  # what is still on its way would come too late
            self._link.send({"kind": "sync", "op": "drop"})  # both end later, which takes time
            return bool(done)
        return await self._end(names, final=True, in_blackout=True)

    async def _same(self, paths: list[str]) -> None:
        """Raises `SyncDiffers` for files opened since the comparison that are not the same."""
        facts = await asyncio.to_thread(tree.facts_of, self._pid, paths)
        for one in await self._compared_there(facts):
            raise _differs(one)

    def _brought(self, path: str) -> bool:
        return path in self._files or is_in(path, self._dirs)

    # --- one pass

    async def _begin(self, one: Pass, stay: Collection[str] = ()) -> None:
        try:
            self._client = await start_client(one, stay)
        except (OSError, TimeoutError) as error:
            raise SyncFailed(detail=f"rsync does not start at the source: {error}") from error
        self._greeted.clear()
        self._under_way = 0
        parents = [list(one) for one in places.of(self._made, self._files)]
        self._link.send({"kind": "sync", "op": "begin", "pass": one, "parents": parents})
        self._pumps.append(asyncio.create_task(self._pump(self._client)))
        await self._answer("ready")

    async def _end(
        self, names: list[str], *, final: bool = False, in_blackout: bool = False
    ) -> bool:
        """Name what is to be brought, and wait until it is there; whether all of it is. Raises
        where it is not, and that was the `final` try."""
        client = self._client
        assert client is not None
        client.send(names)
        status = await client.status()
        await asyncio.gather(*self._pumps)
        self._link.send({"kind": "sync", "op": "end"})
        if in_blackout and status == 0:  # that of the other end, too, which takes longer to end
            return True
        ended = await self._answer("ended")
        theirs, words = ended.get("status"), ended.get("said")
        if not isinstance(theirs, int) or not isinstance(words, str):
            raise ProtocolError(detail="the destination's rsync ended without a status")
        said = [*client.said, *words.splitlines()]
        self._end_client()
        status = max(status, theirs, key=lambda one: one not in (0, rsync.VANISHED))
        if status == rsync.PARTIAL and not final:
            return False
        if status not in (0, rsync.VANISHED):
            raise rsync.failure(status, said)
        return True

    async def _pump(self, client: Client) -> None:
        """Send what rsync writes."""
        while data := await client.output.read(PIECE):
            self._link.send({"kind": "sync", "op": "data", "data": data})
            self._under_way += len(data)
            await self._went(len(data))
            while self._under_way > _WINDOW:
                self._taken.clear()
                await self._taken.wait()

    async def take(self, record: Record) -> None:
        """A record of the destination. Waits until rsync has room for more of it."""
        op, client = record.get("op"), self._client
        self._heard = time.monotonic()
        if op == "alive":
            return
        if op == "taken":
            size = record.get("size")
            if not isinstance(size, int) or not 0 < size <= PIECE:
                raise ProtocolError(detail=f"the destination's rsync took {shown(size)} bytes")
            self._under_way = max(self._under_way - size, 0)
            self._taken.set()
            return
        if op != "data":
            if self._answers.qsize() > 1:
                raise ProtocolError(detail=f"the destination sent {shown(op)} over and over")
            self._answers.put_nowait(record)
            return
        data = record.get("data")
        if not isinstance(data, bytes):
            raise ProtocolError(detail="a malformed piece of what rsync says")
        self._count(len(data))
        self._greeted.set()
        if client is None:
            return
        if data:
            await client.feed(data)
        else:  # the other has ended
            with contextlib.suppress(OSError):
                client.input.close()

    async def _answer(self, op: str) -> Record:
        """What the destination answers. Raises `ProtocolError`."""
        record = await self._answers.get()
        if record.get("op") != op:
            raise ProtocolError(detail=f"{shown(record.get('op'))} came instead of {op!r}")
        return record

    async def _went(self, size: int) -> None:
        self._count(size)
        await self._link.drain()
        await self._bandwidth.spend(size)

    def _count(self, size: int) -> None:
        self.sent += size
        self._progress(self.sent, max(self.sent, self._to_do))

    @contextlib.asynccontextmanager
    async def _alive(self) -> Any:
        """Say something now and then, as rsync may be busy for long without a word."""

        async def say() -> None:
            while time.monotonic() - self._heard < _SILENCE:
                self._gets_on()
                self._link.send({"kind": "sync", "op": "data", "data": b""})
                await asyncio.sleep(SAY_EVERY)
            raise PeerLost(phase="sync", detail="the destination is silent")

        self._heard = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                saying = group.create_task(say())
                yield
                saying.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def close(self) -> None:
        """End rsync, if it has not. Idempotent."""
        if self._last is not None:
            self._last.cancel()
        self._end_client()

    def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        self._pumps.clear()

    def _end_client(self) -> None:
        self._stop_pumps()
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _differs(one: FileProblem) -> SyncDiffers:
    detail = one["detail"] or "it is missing"
    return SyncDiffers(path=one["path"], use=one["use"], pid=one["pid"], detail=detail)
