"""What the destination does to its own host, step by step, and how all of it is undone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.criu.images import inherit_key
from agent.criu.worker import CriuWorker
from agent.errors import AgentError, ProtocolError, shown
from agent.fault import Faults
from agent.freeze import Tree
from agent.host import MANY, MAX_SOCKETS, Host, from_rows
from agent.image.records import Record
from agent.kernel import proc, uapi
from agent.link import Link
from agent.memory.filling import Filling
from agent.memory.paging import Heard, PagerFailed, Paging
from agent.memory.store import PageStores
from agent.netlock import apply, render
from agent.netlock.render import Connection
from agent.phases import Phases
from agent.plan import Plan
from agent.protocol import may_follow
from agent.successor import remembered
from agent.tcp import apart, opening, options, placing, time_wait
from agent.tcp.closing import settle
from agent.tcp.inventory import connection
from agent.tcp.option_check import Sieve
from agent.tcp.placing import Places
from agent.tcp.restoring import abandon, new_socket, release, restore
from agent.tcp.rtt import early
from agent.tcp.stream import Stream, StreamError
from agent.tcp.time_wait import TimeWait
from agent.tcp.wake import Waking, endpoints, opens, wake

_PAGER_PATIENCE = 10.0  # seconds for the pager to say that it has what CRIU gave it
_RESTORE_PATIENCE = 60.0  # seconds a restore may still take when it is to be undone
_ROOM = 1 << 30  # bytes of images over twice the memory that the plan speaks of
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class PidTaken(AgentError):
    code = "pid-taken"
    template = "at the destination, {comm} has taken PID {pid} since the check"
    hint_template = "Run the migration again when it has ended, or move the process elsewhere."


class CopyDied(AgentError):
    code = "copy-died"
    template = "process {pid}, restored at the destination and stopped, {how} there"
    hint_template = (
        "SIGKILL may be the OOM killer's: see the destination's kernel log. Then run it again."
    )


class DestinationHost(Host):
    """The restored process, its sockets, lock and addresses on the destination."""

    def __init__(self, plan: Plan, phases: Phases, faults: Faults) -> None:
        """As `Host`. Raises `AgentError` or `OSError`."""
        self._spare: dict[int, list[socket.socket]] = {family: [] for family in _FAMILIES}
        self._inheritable: set[int] = set()
        self._restored: list[tuple[socket.socket, Stream]] = []
        self._sieve = Sieve()
        self._waking: list[Waking] = []
        self._time_waits: list[tuple[socket.socket, TimeWait]] = []
        self._locked_time_waits = False
        self._worker: CriuWorker | None = None
        self._tree: Tree | None = None
        self._stores: PageStores | None = None
        self._paging: Paging | None = None
        self._places: Places | None = None
        self._restoring: asyncio.Task[int] | None = None
        self._took_addresses = False
        self.resumed_at = 0.0
        self.replayed = 0
        devices = [one.destination_device for one in plan.addresses]
        self._limit = 2 * plan.memory + _ROOM
        super().__init__(plan, phases, faults, devices, self._limit)

    def _open(self, opened: contextlib.ExitStack) -> None:
        opened.callback(self._close_sockets)

    @property
    def images(self) -> Path:
        return self._store.path

    # --- forward

    def lock(self, record: Record) -> None:
        """Lock before the addresses can come here, and get sockets and CRIU ready."""
        self._pids_free()
        self._connections = set(from_rows(record))
        self._lock_fully()
        self._start_capture()
        families = record.get("families")
        if not isinstance(families, list) or len(families) > MAX_SOCKETS:
            raise ProtocolError(detail="a lock without the sockets' families")
        for family in families:
            if not isinstance(family, int) or family not in _FAMILIES:
                raise ProtocolError(detail=f"a socket of family {shown(family, 20)}")
            self._spare[family].append(new_socket(family))
        self._start_worker()

    def _pids_free(self) -> None:
        for pid in self._plan.tree:
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
                raise PidTaken(pid=pid, comm=comm)

    def _start_worker(self) -> None:
        """CRIU inherits our sockets by number, so it starts when they exist."""
        if self._worker is not None:
            self._worker.close()
        sockets = [sock for spare in self._spare.values() for sock in spare]
        sockets += [sock for sock, _ in self._restored]
        if len(sockets) >= MANY and placing.possible() and not self._restored:
            sockets = []  # they will be put into their places; else this is started again
        self._inheritable = {sock.fileno() for sock in sockets}
        self._worker = CriuWorker(
            self._store.path, "restore.log", pass_fds=sorted(self._inheritable)
        )
        self._opened.callback(self._worker.close)

    def add_connections(self, record: Record) -> None:
        fresh = [one for one in from_rows(record) if one not in self._connections]
        if fresh:
            self._lock_also(fresh)

    def add_time_waits(self, record: Record) -> None:
        """Lock them, and ready their sockets before a listener takes their port."""
        if self._locked_time_waits:
            raise ProtocolError(detail="connections in TIME_WAIT for a second time")
        wanted = [
            one for one in time_wait.from_rows(record.get("rows")) if one.local in self._addresses
        ]
        ends = [Connection(*one[:5]) for one in wanted]
        self._locked_time_waits = True
        apply.run(render.time_waits(self._plan.id, ends))
        for one in wanted:
            with contextlib.suppress(StreamError, OSError):  # in use here, or no room: let it go
                self._time_waits.append((time_wait.prepare(one), one))

    def finish_time_waits(self) -> None:
        """From now on the kernel answers late FINs of what was in TIME_WAIT at the source."""
        for sock, one in self._time_waits:
            with contextlib.suppress(OSError):
                time_wait.finish(sock, one, self._replayer.inject)
        self._drop_time_waits()

    def _drop_time_waits(self) -> None:
        for sock, _ in self._time_waits:
            abandon(sock)
        self._time_waits.clear()
        if self._locked_time_waits:
            apply.run(render.unlock_time_waits(self._plan.id))
            self._locked_time_waits = False

    def restore_streams(self, streams: list[Stream]) -> None:
        """Restore each onto a socket that CRIU can inherit, in repair mode."""
        for stream in streams:
            if stream.has_peer:
                one = connection(stream.local, stream.remote)
                if one not in self._connections:
                    raise ProtocolError(detail=f"the stream {stream.name} was not announced")
            spare = self._spare.get(stream.family)
            sock = spare.pop() if spare else new_socket(stream.family)
            self._restored.append((sock, stream))
            if self._plan.missing_options:
                stream.options = self._sieve.possible(stream.options, stream.family)
            restore(stream, sock, boundary=self._plan.boundary)

    @property
    def about_worker(self) -> dict[str, int]:
        """CRIU and the time before its restore, for whoever would have to undo it."""
        assert self._worker is not None
        pid = self._worker.pid
        return {"worker": pid, "worker_born": proc.born(pid), "ticks": proc.now_in_ticks()}

    @property
    def births(self) -> list[list[int]]:
        """As `Tree.births`."""
        return self._tree.births if self._tree is not None else []

    @property
    def remembered(self) -> dict[str, Any]:
        """What a release by somebody else would have to know of the streams."""
        return remembered(stream for _, stream in self._restored)

    def take_pages(self, record: Record) -> None:
        """Keep memory that comes ahead, and have somebody ready to give it to the process."""
        self._page_stores().take(record)

    def owe_pages(self, record: Record) -> None:
        """Memory that comes when the process runs already."""
        self._page_stores().owe(record)

    def _page_stores(self) -> PageStores:
        if self._stores is None:
            self._stores = PageStores(self._store.path, self._limit)
            self._opened.callback(self._stores.close)
            self._paging = Paging(self._store.path)
            self._opened.callback(self._paging.close)
        return self._stores

    @property
    def misses_memory(self) -> bool:
        """Whether the process runs before all of its memory has come."""
        return self._stores is not None and self._stores.owed

    def store(self, name: str, data: bytes) -> None:
        self._store.write(name, data)

    async def restore_process(self, heard: Heard = lambda _: None) -> int:
        """Restore the tree, stopped; returns the PID of its root. `heard`: as `Paging.restored`."""
        with self._phases.step("restore_process"):
            await self._faults.at("restore_process")
            self._pids_free()
            self._store.finish()
            inherit = {}
            if self._places is None:
                pairs = self._restored
                inherit = {inherit_key(stream.inode): sock.fileno() for sock, stream in pairs}
            if not self._inheritable.issuperset(inherit.values()):
                self._start_worker()
            assert self._worker is not None
            if (paging := self._paging) is not None:
                await paging.ready()
            lazy = paging is not None
            self._restoring = asyncio.create_task(
                self._worker.restore(inherit, shell_job=self._plan.shell_job, lazy=lazy)
            )
            restored = None if paging is None else asyncio.create_task(paging.restored(heard))
            try:
                pid = await asyncio.shield(self._restoring)
                self._hold_tree(pid)
                if restored is not None:
                    await asyncio.wait_for(restored, _PAGER_PATIENCE)
            except TimeoutError:
                raise PagerFailed(detail="it does not say what it was given") from None
            finally:
                if restored is not None:
                    restored.cancel()
                    await asyncio.gather(restored, return_exceptions=True)
            self._place()
            return pid

    def take_places(self, record: Record) -> None:
        """Where the sockets are to be put, if it is not CRIU that does it."""
        if "places" in record:
            self._places = Places.from_wire(record)
            self._places.check({stream.inode for _, stream in self._restored})

    def _place(self) -> None:
        if self._places is not None:
            assert self._tree is not None
            sockets = {stream.inode: sock for sock, stream in self._restored}
            self._places.fill(self._tree.pidfds, sockets)

    def _hold_tree(self, pid: int) -> None:
        self._tree = Tree(pid)
        self._opened.callback(self._tree.close)
        self._tree.refresh()

    def check_copy(self) -> None:
        """Raises `CopyDied` where a process of the restored tree has ended since."""
        assert self._tree is not None
        if (ended := self._tree.ended) is not None:
            raise CopyDied(pid=ended, how=self._tree.how_ended(ended))

    def take_addresses(self) -> None:
        """Answer for the addresses from now on; streams that need it come to their state."""
        self._took_addresses = True
        for mover in self._movers:
            mover.add()
        for mover in self._movers:
            mover.announce()
        for sock, stream in self._restored:
            settle(sock, stream, self._replayer.inject)

    def release(self) -> None:
        """Leave repair mode, stream by stream: from now on the peers may hear of us.

        Many leave it in silence, and the peers are probed when the process runs: it takes as long
        for each as all the rest.
        """
        many = len(self._restored) >= MANY
        for sock, stream in self._restored:
            if not stream.has_peer:
                options.restore_owner(sock, stream.options)
                continue
            quiet = many and stream.state == uapi.TCP_ESTABLISHED and not early(stream)
            waking = Waking(sock, stream, time.monotonic(), probes=int(not quiet))
            with contextlib.suppress(OSError):  # such a stream then reports no answer
                release(sock, stream, self._replayer.inject, quiet=quiet)
            waking.begin()
            self._waking.append(waking)

    def thaw(self, stopped: set[int]) -> None:
        """Let the process go on, but for members that were stopped before."""
        assert self._tree is not None
        self._tree.stopped_before = stopped
        self._tree.thaw()
        self.resumed_at = time.monotonic()
        if self._paging is not None:
            self._paging.fill()

    def replay(self, packets: list[bytes]) -> None:
        """Give the stack what the peers sent while they were locked out."""
        if self._capture is not None:
            packets = packets + self._capture.drain(self._connections, self._listeners)
        if not packets or not self._plan.replay:
            return
        by_key = {waking.key: waking for waking in self._waking}
        # A segment that has no socket here would be answered with a reset.
        packets = [one for one in packets if endpoints(one) in by_key or opens(one)]
        packets = [self._fitting(by_key.get(endpoints(one)), one) for one in packets]
        keys = [key for key in map(endpoints, packets) if key in by_key]
        touched: list[Waking] = []
        if self.misses_memory:  # a look may have to wait for memory that we bring
            for key in keys:
                by_key[key].ignored += 1
        else:
            touched = [by_key[key] for key in set(keys)]
        for waking in touched:
            waking.look()
        self.replayed += self._replayer.replay(packets)
        for waking in touched:
            waking.disregard()

    @staticmethod
    def _fitting(waking: Waking | None, packet: bytes) -> bytes:
        if waking is not None and waking.stream.state == uapi.TCP_SYN_SENT:
            with contextlib.suppress(OSError):  # it has come to an end meanwhile
                return opening.fit(waking.sock, waking.stream, packet)
        return packet

    @property
    def fills(self) -> bool:
        """Whether memory is still given to the process while it runs."""
        return self._paging is not None

    def filling(self, link: Link, left: Callable[[int], None]) -> Filling:
        """What asks the source for what is missing, and takes it in."""
        assert self._paging is not None
        filling = Filling(link, self._paging, left)
        self._opened.callback(filling.close)
        return filling

    async def filled(self, heard: Heard) -> None:
        """Wait until the process has all of its memory. Raises `PagerFailed`."""
        if self._paging is not None:
            await self._paging.filled(heard)

    async def wake(self) -> None:
        """Wait (bounded, but for memory that is missing) until each peer has answered."""
        if not self.misses_memory:
            await wake(self._waking)
            return
        with contextlib.suppress(OSError):  # no child could be made: each was probed once
            await apart.wake(self._waking)

    # --- back

    async def undo(self, actions: Sequence[str]) -> None:
        """Leave nothing, in the protocol's order: no process, socket, address or lock. No packet
        is sent.

        A step that fails does not keep those that may follow it from being taken; the first to
        fail is raised in the end.
        """
        failures: dict[str, Exception] = {}
        for action in actions:
            if not may_follow(action, failures):
                continue
            try:
                if action == "kill":
                    await self.kill()
                else:
                    getattr(self, action)()
            except Exception as error:
                failures[action] = error
        for failure in failures.values():
            raise failure

    async def kill(self) -> None:
        """End the copy, as far as there is one, and its streams."""
        async with contextlib.AsyncExitStack() as steps:  # runs them from the last to the first
            steps.callback(self._drop_time_waits)
            steps.push_async_callback(self._end_tree)
            steps.callback(self._abandon)
            steps.push_async_callback(self._restore_ended)

    def drop_addresses(self) -> None:
        """Answer for them no more, if they were taken."""
        if self._took_addresses:
            for mover in self._movers:
                mover.remove()

    def _abandon(self) -> None:
        for sock, _ in self._restored:
            abandon(sock)
        self._restored.clear()

    async def _end_tree(self) -> None:
        if self._tree is not None:
            await self._tree.kill()
        if self._paging is not None:
            self._paging.end()

    async def _restore_ended(self) -> None:
        """A restore that is under way is left to its end, so that all of its tree is known."""
        if self._restoring is None or self._tree is not None:
            return
        await asyncio.wait({self._restoring}, timeout=_RESTORE_PATIENCE)
        with contextlib.suppress(AgentError, asyncio.CancelledError):
            if not self._restoring.done():
                self._restoring.cancel()
            self._hold_tree(await self._restoring)

    def _close_sockets(self) -> None:
        spare = [sock for sockets in self._spare.values() for sock in sockets]
        for sock in (*spare, *(sock for sock, _ in self._restored)):
            sock.close()

    def wake_reports(self) -> list[dict[str, Any]]:
        return [waking.report() for waking in self._waking]
