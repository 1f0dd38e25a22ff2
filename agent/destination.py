"""The destination's part of a migration: lock, restore, commit, take over, wake; or leave nothing.

Goes by the destination's table of `agent.protocol`; records are taken in the order in which they
come. Whatever goes wrong before the commit, just before the first stream leaves repair mode, is
undone here and told to the source ("failed"), which then goes on itself. Afterwards nothing is
undone any more: this host has the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time
from typing import Any

from agent import host_id
from agent.custody import Custody
from agent.destination_host import DestinationHost
from agent.errors import (
    AgentError,
    AlreadyRun,
    BlackoutExceeded,
    Cancelled,
    PeerLost,
    ProtocolError,
    from_wire,
    internal,
    shown,
)
from agent.fault import FULL, LINK, Faults
from agent.image.records import Record
from agent.image.store import ImagesFull
from agent.image.streams import StreamCollector
from agent.journal import JournalError
from agent.link import Link, Relay, reached_address
from agent.login import LinkServer
from agent.memory.filling import Filling
from agent.memory.paging import Left
from agent.phases import Phases
from agent.plan import Plan
from agent.protocol import DESTINATION
from agent.server import Server
from agent.sync.destination import SyncDestination
from agent.sync.errors import SyncFull
from agent.tasks import first_of, together

_LINK_TIMEOUT = 30.0  # seconds for the source to connect
_LOCK_TIMEOUT = 20.0  # seconds for it to ask for the lock, then
_SLACK = 2.0  # seconds over the plan's blackout before this side gives up by itself
_TAKE_OVER = 5.0  # seconds from the hand-over to the commit
_NOTE_EVERY = 5.0  # seconds between notes for the guardian that this gets on
_GOODBYE = 5.0  # seconds after the peers are awake for the source's last packets


# What the source may say until it has said this; the lock comes before all that needs it.
_IN_TURN = {
    "lock": {"ping", "undo", "sync", "pages", "lock"},
    "end": {
        "sync",
        "pages",
        "owed",
        "connections",
        "time_waits",
        "streams",
        "queue",
        "file",
        "undo",
        "end",
    },
    "handover": {"pages", "undo", "handover"},
}


class DestinationMigration:
    """One migration, seen from the destination."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._phases = Phases(server.send_event)
        self._link = Link(lambda: self._phases.current)
        self._relay = Relay(self._link, server.send_event)
        self._collector = StreamCollector()
        self._custody: Custody
        self._running = False
        self._handover: Record = {}
        self._stopped: set[int] = set()
        self._to_fill = Left(server.send_event)
        self._filling: Filling | None = None
        self._awake = asyncio.Event()  # the peers, or as far as they will be

    # --- calls

    async def prepare(
        self, plan: dict[str, Any], client_key: str, source_id: str
    ) -> dict[str, Any]:
        """Open the link's port and get everything ready that takes time."""
        other_host = host_id.checked(source_id)
        self._plan = Plan.from_wire(plan)
        self._listener = LinkServer(self._link, client_key)
        self._faults = Faults(DESTINATION, self._plan.faults)
        self._faults.cut, self._faults.spoil = self._link.close, self._link.spoil
        self._link.faults = Faults(LINK, self._plan.faults).actions
        self._custody = Custody(self._plan, DESTINATION, other_host=other_host)
        self._machine = self._custody.machine
        self._faults.fill = self._custody.journal.fill
        self._server.on_event("relay", self._relay.event)
        try:
            await self._faults.at("prepare")
            self._host = DestinationHost(self._plan, self._phases, self._faults)
            gets_on = functools.partial(self._custody.gets_on, _NOTE_EVERY)
            self._sync = SyncDestination(self._plan, self._link, gets_on)
            try:
                reply = await self._listener.listen(reached_address() or "127.0.0.1")
            except BaseException:
                self._host.close()
                raise
        except BaseException:
            self._custody.end()
            raise
        reply["addresses"] = list(dict.fromkeys([*self._plan.link_hosts, *reply["addresses"]]))
        reply["host_id"] = self._custody.host_id
        return reply

    async def run(self) -> dict[str, Any]:
        """Take the process in; returns the report when all is over. Raises `AlreadyRun`."""
        if self._running or self._machine.state != "ready":
            raise AlreadyRun(role=DESTINATION)
        self._running = True
        error: AgentError | None = None
        gc.collect()
        gc.disable()
        try:
            await self._unless_lost(asyncio.ensure_future(self._forward()))
        except AgentError as failure:
            error = failure
        except asyncio.CancelledError:  # this agent is ending: still leave nothing half done
            error = Cancelled(phase=self._phases.current)
        except TimeoutError:
            limit = self._plan.max_blackout
            error = BlackoutExceeded(limit_s=limit, phase=self._phases.current)
        except Exception as failure:
            error = internal(failure)
        finally:
            gc.enable()
        try:
            if error is not None and not self._machine.committed:
                await self._undo(error)
        finally:
            await self._close()
            self._running = False
        return self._report(error)

    async def orchestrator_gone(self) -> None:
        """The agents end it between themselves; without a link there is nobody to end it with."""
        if self._link.relayed or not self._link.opened.is_set():
            self._link.ended(None)
            self._link.opened.set()
        if not self._running:
            await self._close()

    async def _unless_lost(self, forward: asyncio.Future[None]) -> None:
        """Run to the end, or until the source is gone without having handed over."""
        lost = asyncio.ensure_future(self._link.lost.wait())
        either: set[asyncio.Future[Any]] = {forward, lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if not (forward.done() or self._handover or self._link.queued("handover")):
            self._phases.failed_in = self._phases.failed_in or self._phases.current
            forward.cancel()
            await asyncio.wait({forward})
            if forward.cancelled():
                undo = self._link.queued("undo") or {}
                if "error" in undo:
                    raise from_wire(undo["error"])
                raise PeerLost(phase=self._phases.to_blame, detail="the source is gone")
        await forward

    # --- the way forward

    async def _forward(self) -> None:
        try:
            async with asyncio.timeout(_LINK_TIMEOUT):
                await self._link.opened.wait()
        except TimeoutError:
            raise PeerLost(phase="check", detail="the source did not connect") from None
        self._machine.on("connect")
        await self._until("lock", _LOCK_TIMEOUT)
        async with asyncio.timeout(self._plan.max_blackout + _SLACK) as deadline:
            await self._until("end")
            self._sync.check_over()
            self._machine.on("restore", **self._host.about_worker)
            pid = await self._restore()
            self._custody.journal.note(births=self._host.births, **self._host.remembered)
            await self._sync.on_disk()
            self._machine.on("restored")
            await self._faults.at("restored")
            self._link.send({"kind": "prepared", "pid": pid})
            with self._phases.step("commit"):
                await self._until("handover")
                await self._faults.at("commit")
            deadline.reschedule(asyncio.get_running_loop().time() + _TAKE_OVER)
            self._stopped = _pids(self._handover.get("stopped"))
            self._machine.on("hand-over", stopped=sorted(self._stopped))
            await self._take_over()
            self._host.check_copy()
            self._machine.on("run" if self._host.misses_memory else "commit")
            deadline.reschedule(None)
        await self._let_go()
        await self._finish()

    async def _restore(self) -> int:
        """The restored tree's root. What memory it takes to restore is brought meanwhile."""
        host = self._host
        if not host.misses_memory:
            return await host.restore_process()
        self._filling = host.filling(self._link, self._left)
        restored = host.restore_process(self._filling.heard)
        async with together(restored, self._bring(self._filling)) as tasks:
            await first_of(tasks)
            restoring, bringing = tasks
            if not restoring.done():
                bringing.result()
            return int(restoring.result())

    async def _bring(self, filling: Filling) -> None:
        while True:
            record = await self._link.receive()
            if record["kind"] == "undo":
                raise from_wire(record.get("error"))
            if record["kind"] != "pages":
                raise ProtocolError(detail=f"the source sent {shown(record['kind'])} in a restore")
            await filling.take(record)

    async def _until(self, last: str, patience: float | None = None) -> None:
        """Take records in up to the one of kind `last`; `patience`: seconds between them."""
        heard = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(patience):
                    record = await self._link.receive()
            except TimeoutError:
                raise PeerLost(phase="lock", detail="the source does not go on") from None
            if patience is not None and time.monotonic() - heard > patience:
                heard = time.monotonic()
                self._custody.journal.note()  # else the guardian would take us for hung
            kind = record["kind"]
            late = kind == "pages" and last == "handover" and self._filling is None
            if late or kind not in _IN_TURN[last]:
                raise ProtocolError(detail=f"the source sent {shown(kind)} before {last!r}")
            await self._take(record)
            if kind == last:
                return

    async def _take(self, record: Record) -> None:
        kind = record["kind"]
        host = self._host
        if kind == "file":
            await self._store(record)
        elif kind == "sync":
            await self._take_files(record)
        elif kind == "pages":
            if self._machine.state == "linked":
                self._phases.current = "pre_copy"
            await self._faults.at("pages")
            if self._filling is not None:
                await self._filling.take(record)
            else:
                host.take_pages(record)
        elif kind == "owed":
            host.owe_pages(record)
        elif kind in ("streams", "queue"):
            if streams := self._collector.feed(record):
                with self._phases.step("restore_streams"):
                    await self._faults.at("restore_streams")
                    host.restore_streams(streams)
        elif kind == "ping":
            self._link.send({"kind": "pong", "at": time.monotonic()})
            await self._link.drain()
        elif kind == "lock":
            self._phases.current = "lock"
            self._machine.on("lock")
            await self._faults.at("lock")
            host.lock(record)
            self._link.send({"kind": "locked"})
        elif kind == "connections":
            host.add_connections(record)
        elif kind == "time_waits":
            host.add_time_waits(record)
            self._link.send({"kind": "time_waits_held"})
        elif kind == "end":
            host.take_places(record)
        elif kind == "undo":
            raise from_wire(record.get("error"))
        elif kind == "handover":
            self._handover = record

    async def _take_files(self, record: Record) -> None:
        if self._machine.state == "linked":
            self._phases.current = "sync"
        if self._faults.action("sync") == FULL:
            raise SyncFull(detail="a fault was asked for")
        await self._faults.at("sync")
        await self._sync.take(record)

    async def _store(self, record: Record) -> None:
        self._phases.current = "ship"
        if self._faults.action("ship") == FULL:
            raise ImagesFull(path=str(self._host.images))
        await self._faults.at("ship")
        files = record.get("files")
        if not isinstance(files, list):
            raise ProtocolError(detail="a record of files without files")
        for row in files:
            match row:
                case [str(name), bytes(data)]:
                    self._host.store(name, data)
                case _:
                    raise ProtocolError(detail="a malformed file in a record")

    async def _take_over(self) -> None:
        """Answer for the addresses, still behind the lock."""
        with self._phases.step("take_over"):
            await self._faults.at("take_over")
            self._host.take_addresses()
        await self._faults.at("decide")

    async def _let_go(self) -> None:
        """The decision is on disk: nothing of this is undone any more."""
        host = self._host
        with self._phases.step("unlock"):
            await self._faults.at("unlock")
            host.unlock()
        await self._faults.at("release")
        host.release()
        await self._faults.at("thaw")
        host.thaw(self._stopped)
        with contextlib.suppress(PeerLost):  # it will ask the orchestrator
            at = {"at": host.resumed_at}
            if self._machine.state == "running":
                self._link.send({"kind": "running", **at})
            else:
                self._link.send({"kind": "committed", **at})
        with contextlib.suppress(JournalError):
            self._custody.journal.note(resumed=True)

    async def _finish(self) -> None:
        """After the decision: the peers, and the rest of the memory beside them."""
        works = [self._wake_peers(), self._listen()]
        if self._host.fills:
            works.append(self._fill())
        if self._filling is not None:
            works.append(self._post_copy(self._filling))
        async with together(*works) as tasks:
            for one in asyncio.as_completed(tasks):
                await one
        self._machine.back("ended")

    async def _wake_peers(self) -> None:
        """What they sent meanwhile, then the peers themselves."""
        host = self._host
        with self._phases.step("replay"):
            with contextlib.suppress(AgentError):
                await self._faults.at("replay")
            host.replay(_packets(self._handover))
        with contextlib.suppress(AgentError):
            await self._faults.at("end")
        await host.wake()
        with contextlib.suppress(PeerLost):
            self._link.send({"kind": "awake"})
        with contextlib.suppress(AgentError):
            host.finish_time_waits()
        self._awake.set()

    async def _fill(self) -> None:
        with self._phases.step("fill"):
            with contextlib.suppress(AgentError):
                await self._faults.at("fill")
            await self._host.filled(self._heard)

    def _heard(self, message: dict[str, Any]) -> None:
        """The pager says something."""
        if self._filling is not None:
            self._filling.heard(message)
        elif "left" in message:
            self._left(int(message["left"]))

    async def _post_copy(self, filling: Filling) -> None:
        """Until the source has nothing more that is needed, and knows it. Raises `PeerLost`."""
        with self._phases.step("post_copy"):
            with contextlib.suppress(AgentError):
                await self._faults.at("post_copy")
            filling.ask()
            async with together(filling.complete.wait(), self._link.lost.wait()) as either:
                await first_of(either)
            if not filling.complete.is_set():
                raise PeerLost(phase="post_copy", detail="the source is gone")
        self._machine.on("filled")
        with contextlib.suppress(PeerLost):  # it will ask the orchestrator
            self._link.send({"kind": "committed", "at": self._host.resumed_at})

    def _left(self, left: int) -> None:
        """So much of the process's memory is not in its place yet."""
        self._to_fill.told(left)
        with contextlib.suppress(JournalError):
            self._custody.gets_on(_NOTE_EVERY)

    async def _listen(self) -> None:
        """Take in what still reached the source, and memory, until it says goodbye, or is gone.

        Its goodbye is awaited for a time, once the peers are awake and nothing is missing.
        """
        async with together(self._last_records()) as listening:
            await self._awake.wait()
            if self._filling is not None:
                await self._filling.complete.wait()
            await asyncio.wait(listening, timeout=_GOODBYE)

    async def _last_records(self) -> None:
        with contextlib.suppress(AgentError):
            while True:
                record = await self._link.receive()
                if record["kind"] == "packets":
                    self._host.replay(_packets(record))
                elif record["kind"] == "pages" and self._filling is not None:
                    await self._filling.take(record)
                else:
                    return

    # --- the way back

    async def _undo(self, error: AgentError) -> None:
        self._phases.unwinding = True
        phase = self._phases.to_blame
        await self._host.undo(self._machine.back("fail"))
        self._machine.back("undone")
        with contextlib.suppress(AgentError, AssertionError):
            self._link.send({"kind": "failed", "error": error.to_wire(), "phase": phase})

    async def _close(self) -> None:
        self._listener.stop_listening()
        self._sync.close()
        self._host.needs_images = self._machine.state == "running"
        self._host.close()
        if self._link.opened.is_set():
            self._link.close()
        self._custody.end()

    @property
    def _outcome(self) -> str:
        """ "running" where memory is still at the source, which this agent does not reach."""
        state = self._machine.state
        return "migrated" if self._machine.committed and state != "running" else state

    def _report(self, error: AgentError | None) -> dict[str, Any]:
        host = self._host
        phase = self._phases.to_blame
        return {
            "outcome": self._outcome,
            "error": None if error is None else {**error.to_wire(), "phase": phase},
            "phases_ms": self._phases.ms,
            "spans": self._phases.spans,
            "resumed_at": host.resumed_at,
            "wake": host.wake_reports(),
            "replayed_packets": host.replayed,
        }


def _packets(record: Record) -> list[bytes]:
    packets = record.get("packets")
    if not isinstance(packets, list):
        return []
    return [packet for packet in packets if isinstance(packet, bytes)]


def _pids(value: object) -> set[int]:
    return {pid for pid in value if isinstance(pid, int)} if isinstance(value, list) else set()
