"""What the source does to its own host, step by step, and how each step is undone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent.address import AddressError
from agent.bandwidth import Bandwidth
from agent.criu.hiding import hideable_of, worth
from agent.criu.worker import CriuWorker
from agent.errors import EXIT_IN_DOUBT, AgentError
from agent.fault import Faults
from agent.freeze import Tree
from agent.host import MANY, Host, to_rows
from agent.image.shipper import Shipper
from agent.image.streams import stream_records
from agent.kernel import limits, proc, seccomp, uapi
from agent.kernel.nflog import PacketLog
from agent.kernel.seccomp import Filter
from agent.link import Link
from agent.memory.ahead import Ahead, another, at_once, mapped, too_fast, too_large
from agent.memory.serving import Serving
from agent.netlock import apply, render
from agent.netlock.apply import LockError
from agent.netlock.render import Connection
from agent.phases import Phases, SendEvent
from agent.plan import POST_COPY, STOP, Plan
from agent.sync.source import SyncSource
from agent.tcp import placing, time_wait
from agent.tcp.dumping import dump
from agent.tcp.inventory import (
    check_closing,
    connection,
    drain_accept_queues,
    drain_closing,
    inventory_of,
    take_inventory,
)
from agent.tcp.restoring import leave_repair, release
from agent.tcp.steal import Descriptors, list_descriptors, steal
from agent.tcp.stream import Stream, format_address
from agent.tcp.watched import look

_BATCH = 512  # streams
_MOST_LEFT = 1000  # paths that are told
_DUMP_PATIENCE = 60.0  # seconds a dump may still take when it is to be undone
_IMAGE_LIMIT = 1 << 50  # CRIU writes here, the kernel's own limit holds


class CopyEnded(AgentError):
    """There is nothing that a migration that was undone could let go on."""

    code = "copy-ended"
    template = "process {pid} {how} at the source while it was to be moved: {detail}"
    hint_template = "Start the service anew; nothing of the migration is left."


class RollbackIncomplete(AgentError):
    code = "rollback-incomplete"
    template = "the migration was undone, but not all of it: {detail}"
    hint_template = "Look at process {pid} and at `nft list tables` at the source."
    exit_status = EXIT_IN_DOUBT


class SourceHost(Host):
    """The process, its sockets, lock and addresses on the source."""

    def __init__(self, plan: Plan, phases: Phases, faults: Faults, send_event: SendEvent) -> None:
        """As `Host`. Raises `AgentError` or `OSError`."""
        self._send_event = send_event
        self.memory_mode = plan.memory_mode  # or what `copy_ahead` has found better
        self._streams: list[Stream] = []
        self._sockets: dict[int, socket.socket] = {}
        self._descriptors: Descriptors | None = None
        self._dumping: asyncio.Task[None] | None = None
        self._shipper: Shipper | None = None
        self._ahead: Ahead | None = None
        self._serving: Serving | None = None
        self._sync: SyncSource | None = None
        self._packets: list[bytes] = []
        self._locked = False
        self._in_lock: set[Connection] = set()
        self._gave_addresses = False
        self.locked_at = 0.0
        devices = [one.source_device for one in plan.addresses]
        super().__init__(plan, phases, faults, devices, _IMAGE_LIMIT)

    def _open(self, opened: contextlib.ExitStack) -> None:
        self._tree = Tree(self._plan.pid)
        self.ending = ""  # how the process has, by itself or by somebody's hand, when all is undone
        opened.callback(self._tree.close)
        self._trusting = self._hiding = False
        self._worker = CriuWorker(self._store.path, "dump.log")
        opened.callback(lambda: self._worker.close())
        opened.callback(self._abandon)

    def _start_worker(self, *, trusting: bool = False) -> None:
        """Another CRIU in the place of the one that waits, which takes what epoll sets watch for
        what has these numbers: who has it `trusting` has looked."""
        asked = trusting or self._hiding
        answers = Filter(trust_epoll=trusting, scans=self._hiding) if asked else None
        self._worker.close()
        self._trusting = trusting
        self._worker = CriuWorker(self._store.path, "dump.log", answers)

    # --- forward

    async def copy_ahead(self, link: Link, gets_on: Callable[[], None]) -> None:
        """Send the memory while the process runs; `gets_on` is called for each piece of it."""

        def progress(done: int) -> None:
            self._progress(done)
            gets_on()

        size = mapped(self.pids())
        if self._plan.may_follow and too_large(size, at_once(self._plan.memory)) is not None:
            self.memory_mode = STOP
            return
        if (problem := too_large(size, self._plan.max_blackout)) is not None:
            raise problem
        later = self.memory_mode == POST_COPY
        bandwidth = Bandwidth(self._plan.bandwidth)
        self._ahead = ahead = Ahead(link, progress, bandwidth, tracked=later)
        self._opened.callback(ahead.close)
        pids = self.pids()
        with contextlib.suppress(OSError):  # one has ended
            if worth(pids) and seccomp.may_filter(pids):
                self._hiding = True
                self._start_worker()
        while another(ahead.rounds, self._plan.max_rounds):
            self._tree.refresh()
            await ahead.round(self._tree.pidfds)
            gets_on()
        if later or (slow := too_fast(ahead.rounds, self._plan.max_blackout)) is None:
            return
        if not self._plan.may_follow:
            raise slow
        self.memory_mode = POST_COPY

    def open_sync(self, link: Link, gets_on: Callable[[], None]) -> SyncSource:
        """What brings the files; ended with the rest."""

        def progress(done: int, total: int) -> None:
            self._send_event("progress", {"what": "sync", "done": done, "total": total})

        self._sync = SyncSource(self._plan, link, progress, gets_on)
        self._opened.callback(self._sync.close)
        return self._sync

    def pids(self) -> list[int]:
        """The members of the tree, now."""
        self._tree.refresh()
        return self._tree.pids

    def inventory(self) -> dict[str, Any]:
        """{"connections": [[family, local, ...]], "families": [AF_*]}

        The connections are those that no earlier call has told.
        """
        self._tree.refresh()
        if self._descriptors is None:
            inventory = take_inventory(self._tree.pidfds)
        else:
            inventory = inventory_of(self._sockets.values())
        fresh = [one for one in inventory.connections if one not in self._connections]
        self._connections.update(fresh)
        return {"connections": to_rows(fresh), "families": inventory.families}

    def _keep(self) -> None:
        """Have copies of the sockets, as it takes a while to make many.

        One that the process closes from now on says so to its peer when our copy is closed, too.
        """
        self._descriptors = found = list_descriptors(self._tree.pids)
        for inode in self._sockets.keys() - found.sockets.keys():
            self._sockets.pop(inode).close()
        wanted = {
            inode: place for inode, place in found.sockets.items() if inode not in self._sockets
        }
        self._sockets |= steal(self._tree.pidfds, wanted)

    def time_waits(self) -> list[list[Any]]:
        """What is in TIME_WAIT on the addresses, as rows; none where it cannot be asked."""
        found = time_wait.connections(self._addresses)
        if not found:
            return []
        try:
            with contextlib.closing(PacketLog(time_wait.LOG_GROUP)) as log:
                group = time_wait.LOG_GROUP
                apply.run(render.time_waits(self._plan.id, found, log_group=group))
                rows = time_wait.ask(found, log, self._replayer.inject)
        except (OSError, LockError):  # a kernel that cannot log packets, or the group is taken
            return []
        finally:
            apply.run(render.unlock_time_waits(self._plan.id))
        return [list(one) for one in rows]

    async def hold_new_connections(self) -> None:
        """Drop new SYNs (their peers try again, or are replayed) and let accept() catch up."""
        self._start_capture()
        known = sorted(self._connections)  # in the lock's sets before the blackout needs them
        apply.run(render.lock(self._plan.id, known, self._listeners, stage="hold_syn"))
        self._in_lock = set(known)
        self._locked = True
        if len(self._connections) >= MANY and seccomp.may_filter(self._tree.pids):
            self._start_worker(trusting=True)
        await drain_accept_queues(self._tree.pidfds)
        if len(self._connections) >= MANY:
            self._keep()
            self._keep()  # what was closed in the time that the first one took
        await drain_closing(self._addresses)

    def lock(self) -> None:
        """Cut off every connection and listener, in one transaction."""
        if self._capture is not None:
            # What came until now has been delivered, but for the SYNs that are held off.
            self._packets += self._capture.drain(set(), self._listeners)
        fresh = sorted(self._connections - self._in_lock)
        script = render.tighten(self._plan.id, fresh)
        self.locked_at = time.monotonic()
        apply.run(script)

    @property
    def about_worker(self) -> dict[str, int]:
        """CRIU, for whoever would have to wait for its end."""
        return {"worker": self._worker.pid, "worker_born": proc.born(self._worker.pid)}

    async def freeze(self) -> None:
        await self._tree.freeze()

    @property
    def births(self) -> list[list[int]]:
        """As `Tree.births`."""
        return self._tree.births

    @property
    def stopped_before(self) -> list[int]:
        """Members that somebody had stopped already; they stay stopped."""
        return sorted(self._tree.stopped_before)

    async def dump_and_ship(self, link: Link, note: Callable[..., None]) -> None:
        """Send the streams, then the images while CRIU writes them.

        `note` is told where it is another CRIU than `about_worker` has said.
        """
        phases = self._phases
        if self._sync is not None:
            await self._faults.at("sync_last")
            self._sync.frozen(self._tree.pids)
        # CRIU opens descriptors inside the tree; ours is the list from before.
        self._keep()
        assert self._descriptors is not None
        check_closing(self._addresses)  # closed between the last look and the freeze
        watched = None
        if len(self._sockets) >= MANY and self._can_be_placed():
            watched = look(self._descriptors, self._sockets)
        # CRIU with a filter cannot suspend another's, which somebody may have got meanwhile.
        plain = (self._trusting or self._hiding) and seccomp.filtered(self._tree.pids)
        if plain or (self._trusting and (watched is None or not watched.sound)):
            self._hiding = self._hiding and not plain
            self._start_worker()
            note(**self.about_worker)
        hidden = {}
        if self._worker.hiding is not None:
            hidden = hideable_of(self._tree.pids)  # CRIU makes their threads run
            self._worker.hiding.hide(hidden)
        self._dumping = asyncio.create_task(self._dump_process())
        await asyncio.sleep(0)
        with phases.step("dump_streams"):
            await self._faults.at("dump_streams")
            await self._dump_streams(link)
        if self._ahead is not None:
            with phases.step("ship"):
                if self.memory_mode == POST_COPY:
                    await self._ahead.owe(self._tree.pids)
                else:
                    await self._ahead.round(self._tree.pidfds, last=True)
                    await self._ahead.tell(hidden)
        self._shipper = Shipper(link, self._store.path, self._progress)
        self._opened.callback(self._shipper.close)
        await self._shipper.follow(self._dumping)
        if self._sync is not None:
            with phases.step("sync_last"):
                await self._sync.finished()
        with phases.step("ship"):
            await self._faults.at("ship")
            rows = watched.rows if watched is not None and watched.sound else None
            await self._shipper.finish(self._sockets.keys(), rows)

    def _can_be_placed(self) -> bool:
        assert self._descriptors is not None
        highest = {pid: max(fds, default=0) for pid, fds in self._descriptors.inodes.items()}
        return placing.possible() and all(limits.has_room(*one) for one in highest.items())

    async def _dump_process(self) -> None:
        with self._phases.step("dump_process"):
            await self._faults.at("dump_process")
            lazy = self._ahead is not None
            await self._worker.dump(self._plan.pid, shell_job=self._plan.shell_job, lazy=lazy)

    async def _dump_streams(self, link: Link) -> None:
        """Dump and send them some at a time: the destination restores while we go on."""
        listening: list[Stream] = []  # restored last: bind beside a listener would fail
        batch: list[Stream] = []
        for inode, sock in self._sockets.items():
            stream = dump(sock, inode)
            (listening if stream.state == uapi.TCP_LISTEN else batch).append(stream)
            if len(batch) == _BATCH:
                await self._send_streams(link, batch)
                batch = []
        await self._send_streams(link, [*batch, *listening])

    async def _send_streams(self, link: Link, streams: list[Stream]) -> None:
        self._streams += streams
        ends = (connection(one.local, one.remote) for one in streams if one.has_peer)
        if fresh := [one for one in ends if one not in self._connections]:
            # Accepted or opened since the last look; listeners' ports were locked.
            self._lock_also(fresh)
            link.send({"kind": "connections", "connections": to_rows(fresh)})
        for record in stream_records(streams):
            link.send(record)
            await link.drain()

    def _progress(self, done: int) -> None:
        self._send_event(
            "progress", {"what": "memory", "done": done, "total": max(done, self._plan.memory)}
        )

    def serving(self, link: Link, gets_on: Callable[[], None]) -> Serving:
        """What sends the memory that the destination, where the process runs, still asks for."""
        self._serving = Serving(link, self._tree.pids, gets_on)
        self._opened.callback(self._serving.close)
        return self._serving

    def give_addresses(self) -> None:
        """Answer for them no more."""
        self._gave_addresses = True
        for mover in self._movers:
            mover.remove()

    def locked_out(self) -> list[bytes]:
        """All packets of the peers that the lock has kept out: they go to the destination."""
        self.captured()
        return self._packets

    def captured(self) -> list[bytes]:
        """The peers' packets that arrived since the last call."""
        if self._capture is None:
            return []
        packets = self._capture.drain(self._connections, self._listeners)
        self._packets += packets
        return packets

    # --- the two ends

    async def end_process(self) -> None:
        """The destination has it: end the copy here, without a word to the peers."""
        await self._tree.kill()
        self._abandon()

    async def roll_back(self, actions: Sequence[str]) -> None:
        """Undo whatever was done, in the protocol's order; the process goes on here.

        A step that fails does not keep the others from being taken. Raises `RollbackIncomplete`.
        """
        problems = []
        await self._dump_ended()
        for action in actions:
            try:
                getattr(self, action)()
            except Exception as error:
                problems.append(f"{action}: {error}")
        if self._tree.ended == self._plan.pid:
            self.ending = self._tree.how_ended(self._plan.pid)
        if problems:
            raise RollbackIncomplete(detail="; ".join(problems), pid=self._plan.pid)

    def take_back_addresses(self) -> None:
        """Answer for them again, if they were given up."""
        if self._gave_addresses:
            for mover in self._movers:
                mover.add()
                with contextlib.suppress(AddressError):  # the peers find it by asking
                    mover.announce()

    def unlock(self) -> None:
        """Idempotent. Raises `LockError`."""
        self.captured()
        super().unlock()

    def release(self) -> None:
        """Out of repair mode."""
        dumped = {stream.inode: stream for stream in self._streams}
        for inode, sock in self._sockets.items():
            stream = dumped.get(inode)
            with contextlib.suppress(OSError):  # the peer may have gone meanwhile
                if stream is None:
                    leave_repair(sock)
                elif stream.has_peer:
                    release(sock, stream)

    def thaw(self) -> None:
        """Let the process go on, and have it hear what the peers sent meanwhile."""
        self._tree.thaw()
        if self._packets and self._locked:
            self._replayer.replay(self._packets)

    async def _dump_ended(self) -> None:
        """A dump that is under way holds the process by its parasite: let it end by itself."""
        if self._dumping is not None:
            if self._worker.busy:
                await asyncio.wait({self._dumping}, timeout=_DUMP_PATIENCE)
            self._dumping.cancel()
            await asyncio.gather(self._dumping, return_exceptions=True)
            self._worker.wait_idle(_DUMP_PATIENCE)

    def _abandon(self) -> None:
        # Still in repair mode, and the process was the last other holder: this close is silent.
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    # --- what is reported

    def stream_reports(self) -> list[dict[str, Any]]:
        return [
            {
                "local": format_address(stream.local),
                "remote": format_address(stream.remote),
                "state": uapi.STATE_NAMES[stream.state],
                "receive_queue": len(stream.receive_queue),
                "send_queue": len(stream.send_queue),
                "unsent": stream.unsent,
            }
            for stream in self._streams
            if stream.has_peer
        ]

    def rounds(self) -> list[dict[str, Any]]:
        """As `Ahead.report`; none where the memory goes at once."""
        return self._ahead.report() if self._ahead is not None else []

    def sync_left(self) -> list[str]:
        """What lies among the files to bring and was not brought, or the first of it."""
        left = self._sync.left if self._sync is not None else []
        return [proc.printable(path) for path in left[:_MOST_LEFT]]

    def sync_bytes(self) -> int:
        """Over the link, for files that were brought along."""
        return self._sync.sent if self._sync is not None else 0

    def bytes_sent(self) -> dict[str, int]:
        shipper = self._shipper
        return {
            "memory": (shipper.memory_bytes if shipper else 0)
            + (self._ahead.sent if self._ahead else 0)
            + (self._serving.bytes if self._serving else 0),
            "streams": sum(
                len(stream.send_queue) + len(stream.receive_queue) for stream in self._streams
            ),
            "files": shipper.file_bytes if shipper else 0,
        }
