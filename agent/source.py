"""The source's part of a migration: lock, freeze, dump, ship, hand over; or undo all of it.

Goes by the source's table of `agent.protocol`. Until the hand-over every failure, cancellation or
silence rolls back. From then on only the destination's word decides: "committed" ends the process
here, "failed" lets it go on here. With neither, it stays frozen and locked (in doubt) until
`resolve`, or `migrate recover`, brings the word.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agent import host_id
from agent.clock import ROUNDS, ClockOffset
from agent.conversation import Conversation
from agent.custody import Custody
from agent.errors import (
    AgentError,
    AlreadyRun,
    BlackoutExceeded,
    Cancelled,
    PeerLost,
    ProtocolError,
    internal,
    shown,
)
from agent.fault import LINK, Faults
from agent.image.records import Record
from agent.image.squeeze import squeezer
from agent.journal import JournalError
from agent.link import Link, Relay
from agent.login import LinkClient, where
from agent.phases import Phases
from agent.plan import POST_COPY, STOP, Plan
from agent.protocol import SOURCE
from agent.server import Server
from agent.source_host import CopyEnded, SourceHost
from agent.sync.source import SyncSource
from agent.tasks import Tasks, first_of, together

_LINK_TIMEOUT = 20.0  # seconds for the link to come up
_LOCK_TIMEOUT = 15.0  # seconds for both hosts to be locked
_WORD_TIMEOUT = 10.0  # seconds after the hand-over for the destination to say what became of it
_LAST_WORD = 0.5  # seconds for the destination to say why it broke the link
_NOTE_EVERY = 20.0  # seconds between notes for the guardian that this gets on
_LATE_POLL = 0.005  # seconds between looks for packets that still arrive here


class NotInDoubt(AgentError):
    code = "not-in-doubt"
    template = "this migration is not in doubt"
    hint_template = "There is nothing to resolve."


class LockTimeout(AgentError):
    code = "lock-timeout"
    template = "the two hosts were not locked within {seconds} s"
    hint_template = "Nothing was frozen; run the migration again when both hosts are less busy."


class SourceMigration:
    """One migration, seen from the source."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._phases = Phases(server.send_event)
        self._link = Link(lambda: self._phases.current)
        self._relay = Relay(self._link, server.send_event)
        self._clock = ClockOffset()
        self._interrupted: asyncio.Future[AgentError] = asyncio.get_running_loop().create_future()
        self._talk: Conversation | None = None
        self._worker: dict[str, int] = {}
        self._to_end: tuple[str, ...] = ()
        self._serving: Tasks = []
        self._custody: Custody
        self._sync: SyncSource | None = None
        self._running = False

    # --- calls

    async def prepare(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Get everything ready that takes time and disturbs nothing."""
        self._plan = Plan.from_wire(plan)
        self._faults = Faults(SOURCE, self._plan.faults)
        self._faults.cut, self._faults.spoil = self._link.close, self._link.spoil
        self._link.faults = Faults(LINK, self._plan.faults).actions
        self._client = LinkClient(self._link)
        self._server.on_event("relay", self._relay.event)
        self._custody = Custody(self._plan, SOURCE)
        self._machine = self._custody.machine
        self._faults.fill = self._custody.journal.fill
        try:
            await self._faults.at("prepare")
            self._host = SourceHost(self._plan, self._phases, self._faults, self._server.send_event)
            if self._plan.syncs:
                gets_on = functools.partial(self._custody.gets_on, _NOTE_EVERY)
                self._sync = self._host.open_sync(self._link, gets_on)
        except BaseException:
            self._custody.end()
            raise
        return {"public_key": self._client.public_key, "host_id": self._custody.host_id}

    async def run(self, link: dict[str, Any]) -> dict[str, Any]:
        """Migrate; returns the report when all is over or in doubt (`resolve` ends that).

        Raises `AlreadyRun`.
        """
        if self._running or self._machine.state != "ready":
            raise AlreadyRun(role=SOURCE)
        self._running = True
        gc.collect()
        gc.disable()  # a collection in the blackout would cost more than all our garbage
        try:
            error = await self._until_interrupted(self._forward(link))
            error = await self._true_cause(error)
            outcome = await self._settle(error)
        finally:
            gc.enable()
            self._running = False
            if self._machine.state != "in-doubt":
                await self._close()
        return self._report(outcome, error if outcome != "migrated" else None)

    async def cancel(self) -> dict[str, Any]:
        """Undo, unless the destination may already have the process."""
        accepted = not self._machine.committed
        if accepted:
            self._interrupt(Cancelled(phase=self._phases.current))
        return {"accepted": accepted}

    async def resolve(self, committed: bool) -> dict[str, Any]:
        """End the doubt with what the destination is known to have done.

        Raises `NotInDoubt`, `ProtocolError`.
        """
        if not isinstance(committed, bool):
            raise ProtocolError(detail=f"{shown(committed)} is neither true nor false")
        if self._machine.state != "in-doubt":
            raise NotInDoubt()
        self._running = True  # so that nobody closes this while it is at work
        try:
            await self._end(self._machine.back("committed" if committed else "failed"), None)
            await self._close()
        finally:
            self._running = False
        return self._report("migrated" if committed else "rolled-back", None)

    async def orchestrator_gone(self) -> None:
        """The agents end it between themselves; without a link there is nobody to end it with."""
        if self._link.relayed or not self._link.opened.is_set():
            self._link.ended(None)
            self._interrupt(PeerLost(phase=self._phases.current, detail="the orchestrator is gone"))
        if not self._running and self._machine.state != "in-doubt":
            await self._close()

    # --- the way forward

    async def _forward(self, link: dict[str, Any]) -> None:
        phases, host, machine = self._phases, self._host, self._machine
        # Whom to ask, once this is handed over; on disk with that decision.
        self._custody.journal.note(other_host=host_id.told(link))
        try:
            async with asyncio.timeout(_LINK_TIMEOUT):
                await self._connect(link)
                machine.on("connect")
                self._talk = talk = Conversation(self._link, self._lost)
                if self._sync is not None:
                    talk.on(self._sync.take, "sync")
                await self._compare_clocks(talk)
        except TimeoutError:
            raise PeerLost(phase="check", detail="it did not come up in time") from None
        if (sync := self._sync) is not None:
            with phases.step("sync"):
                await self._faults.at("sync")
                await sync.bring()
        if self._plan.memory_mode != STOP:
            with phases.step("pre_copy"):
                await self._faults.at("pre_copy")
                gets_on = functools.partial(self._custody.gets_on, _NOTE_EVERY)
                await host.copy_ahead(self._link, gets_on)
        if sync is not None:
            with phases.step("sync"):
                await sync.settle(host.pids())
        machine.on("lock")
        with phases.step("lock"):
            try:
                async with asyncio.timeout(_LOCK_TIMEOUT):
                    await self._lock(talk)
            except TimeoutError:
                raise LockTimeout(seconds=f"{_LOCK_TIMEOUT:.0f}") from None
            asyncio.get_running_loop().call_later(self._plan.max_blackout, self._too_long)
            await self._faults.at("locked")
        machine.on("freeze", **self._worker)
        with phases.step("freeze"):
            await host.freeze()
            self._custody.journal.note(births=host.births, stopped=host.stopped_before)
            await self._faults.at("freeze")
        await host.dump_and_ship(self._link, self._custody.journal.note)
        machine.on("shipped")
        async with self._answering(talk):
            await self._hand_over(talk)
        self._to_end = machine.back("committed")

    async def _hand_over(self, talk: Conversation) -> None:
        """Until the destination has the process, and all of its memory."""
        host, machine = self._host, self._machine
        await self._hear("prepared")
        await self._faults.at("prepared")
        if talk.heard("committed"):  # nothing was handed over, so nothing is given up
            raise ProtocolError(detail="the destination has committed before the hand-over")

        machine.on("prepared")
        try:
            async with asyncio.timeout(_WORD_TIMEOUT):
                await self._faults.at("decided")
                host.give_addresses()
                handover = {"stopped": host.stopped_before, "packets": host.locked_out()}
                self._link.send({"kind": "handover", **handover})
                await self._faults.at("handover")
                word = await self._hear("running", "committed")
        except TimeoutError:
            raise PeerLost(phase="commit", detail="it does not answer") from None
        if word["kind"] == "running":
            await self._serve(talk)

    async def _serve(self, talk: Conversation) -> None:
        """The process runs at the destination: send it the rest of its memory, until it has all."""
        with contextlib.suppress(JournalError):
            self._custody.journal.note(serving=True)
        with contextlib.suppress(AgentError):
            await self._faults.at("serve")
        async with together(self._late_packets(talk)):
            await self._hear("committed")

    @contextlib.asynccontextmanager
    async def _answering(self, talk: Conversation) -> AsyncIterator[None]:
        """Have the destination get what memory it asks for meanwhile: also the restore needs some.

        What that fails with is raised by `_hear`.
        """
        if self._host.memory_mode != POST_COPY:
            yield
            return
        gets_on = functools.partial(self._custody.gets_on, _NOTE_EVERY)
        serving = self._host.serving(self._link, gets_on)
        talk.on(serving.hear, "missing", "want", "got")
        async with together(serving.run()) as self._serving:
            yield

    async def _hear(self, *kinds: str) -> Record:
        """The destination's next word of these, while it is served."""
        assert self._talk is not None
        async with together(self._talk.expect(*kinds)) as word:
            await first_of([*word, *self._serving])
            for one in self._serving:
                if one.done():
                    one.result()
            heard: Record = word[0].result()
            return heard

    async def _lock(self, talk: Conversation) -> None:
        host, send = self._host, self._link.send
        await self._faults.at("lock")
        send({"kind": "lock", **host.inventory()})
        await talk.expect("locked")
        if time_waits := host.time_waits():
            send({"kind": "time_waits", "rows": time_waits})
            await talk.expect("time_waits_held")  # it would be busy in the blackout
        await host.hold_new_connections()
        self._worker = host.about_worker
        send({"kind": "connections", **host.inventory()})
        host.lock()

    async def _connect(self, link: dict[str, Any]) -> None:
        self._link.squeeze(squeezer(link.get("zstd")))
        if not await self._client.connect(*where(link)):
            self._relay.open()
        await self._link.opened.wait()

    async def _compare_clocks(self, talk: Conversation) -> None:
        for _ in range(ROUNDS):
            sent = time.monotonic()
            self._link.send({"kind": "ping"})
            answer = await talk.expect("pong")
            at = answer.get("at")
            if not isinstance(at, float) or not math.isfinite(at):
                raise ProtocolError(detail=f"the destination's clock says {shown(at)}")
            self._clock.sample(sent, at, time.monotonic())

    async def _forward_late_packets(self, talk: Conversation) -> None:
        """Until the peers are awake, send on what still reaches this host."""
        with contextlib.suppress(PeerLost):
            await self._late_packets(talk)
            self._link.send({"kind": "bye"})

    async def _late_packets(self, talk: Conversation) -> None:
        while not talk.heard("awake") and not talk.over:
            if packets := self._host.captured():
                self._link.send({"kind": "packets", "packets": packets})
            await asyncio.sleep(_LATE_POLL)

    # --- interruptions

    def _interrupt(self, error: AgentError) -> None:
        if not self._interrupted.done():
            self._interrupted.set_result(error)

    def _lost(self, error: AgentError) -> None:
        if not self._machine.committed:
            self._interrupt(error)

    def _too_long(self) -> None:
        if not self._machine.committed:
            limit = self._plan.max_blackout
            self._interrupt(BlackoutExceeded(limit_s=limit, phase=self._phases.current))

    async def _until_interrupted(self, forward: Any) -> AgentError | None:
        """Run to the end, to a failure, or to an interruption before the hand-over."""
        task = asyncio.ensure_future(forward)
        while not task.done():
            waits: set[asyncio.Future[Any]] = {task}
            if not self._machine.committed:
                waits.add(self._interrupted)
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:  # this agent is ending: still leave nothing half done
                self._interrupt(Cancelled(phase=self._phases.current))
            if task.done() or self._machine.committed:
                continue
            self._phases.failed_in = self._phases.failed_in or self._phases.current
            task.cancel()
            await asyncio.wait({task})
        try:
            task.result()
        except asyncio.CancelledError:
            self._interrupt(Cancelled(phase=self._phases.current))
            return self._interrupted.result()
        except AgentError as error:
            return error
        except Exception as error:
            return internal(error)
        return None

    async def _true_cause(self, error: AgentError | None) -> AgentError | None:
        """Where the link broke, the destination may still have said why."""
        if isinstance(error, PeerLost) and self._talk is not None:
            return await self._talk.last_word(_LAST_WORD) or error
        return error

    async def _settle(self, error: AgentError | None) -> str:
        """Go to the end that the state allows; its name is the outcome."""
        machine, talk = self._machine, self._talk
        actions = self._to_end
        if machine.state == "handed-over":
            actions = machine.back("failed" if talk is not None and talk.refused else "lost")
        elif not machine.committed:
            actions = machine.back("fail")
        await self._end(actions, error)
        return machine.state

    async def _end(self, actions: Sequence[str], error: AgentError | None) -> None:
        machine, talk = self._machine, self._talk
        if machine.state == "committed":
            await self._faults.at("committed")
            await self._host.end_process()
            await self._faults.at("end")
            if talk is not None:
                await self._forward_late_packets(talk)
            self._host.give_addresses()  # should somebody have taken one back meanwhile
            self._host.unlock()
            machine.back("ended")
        elif machine.state == "rolling-back":
            self._phases.unwinding = True
            if talk is not None and not talk.over and error is not None:
                with contextlib.suppress(PeerLost):
                    self._link.send({"kind": "undo", "error": error.to_wire()})
            begin = time.monotonic()
            await self._host.roll_back([one for one in actions if one != "say_undo"])
            self._phases.add("roll_back", time.monotonic() - begin)  # no step: it takes no blame
            machine.back("undone")

    async def _close(self) -> None:
        if self._talk is not None:
            await self._talk.close()
        self._link.close()
        self._client.close()
        self._host.close()
        self._custody.end()

    def _report(self, outcome: str, error: AgentError | None) -> dict[str, Any]:
        host = self._host
        if outcome == "rolled-back" and host.ending:
            detail = "it was undone" if error is None else error.message
            error = CopyEnded(pid=self._plan.pid, how=host.ending, detail=detail)
        phase = self._phases.to_blame
        if self._talk is not None and self._talk.refused and self._talk.failed_phase:
            phase = self._talk.failed_phase
        return {
            "outcome": outcome,
            "error": None if error is None else {**error.to_wire(), "phase": phase},
            "phases_ms": self._phases.ms,
            "spans": self._phases.spans,
            "lock_at": host.locked_at,
            "clock_offset": self._clock.offset,
            "clock_error": self._clock.error if self._clock.error < 1e6 else 0.0,
            "streams": host.stream_reports(),
            "bytes": host.bytes_sent(),
            "memory_mode": host.memory_mode,
            "rounds": host.rounds(),
            "sync_bytes": host.sync_bytes(),
            "sync_left": host.sync_left(),
            "relayed": self._link.relayed,
        }
