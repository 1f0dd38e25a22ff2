"""One session of the agent: the calls it allows, and its end.

The session ends when stdin ends, when the other side breaks the protocol or is silent for long
(`agent.lease`), or at SIGTERM, SIGHUP or SIGINT. A migration under way is told with
`orchestrator_gone()` and awaited to its end: before the commit it undoes, after it goes forward.
Only then the agent exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from agent.errors import AgentError, ProtocolError, shown
from agent.lease import ALIVE, BEAT, Lease
from agent.server import Handler, Server
from agent.stdio import StdioTransport

_MAX_PATIENCE = 600.0  # seconds
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class NotPrepared(AgentError):
    code = "not-prepared"
    template = "{call} was called before {role}.prepare"


class AlreadyPrepared(AgentError):
    code = "already-prepared"
    template = "this agent already serves a migration as its {role}"


class Migration(Protocol):
    """What the session needs of `SourceMigration` and `DestinationMigration`."""

    async def orchestrator_gone(self) -> None: ...


class Calls:
    """The allow-list. `agent.probe`, `agent.source` and `agent.destination` load at first use."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._role: str | None = None  # also while it is only being prepared
        self._preparing: asyncio.Task[Any] | None = None
        self.source: Any = None
        self.destination: Any = None
        self._resumed: Any = None  # one of `agent.resuming`, that goes on where an agent has left

    def expose_all(self) -> None:
        handlers: dict[str, Handler] = {
            "probe.host": self._probe_host,
            "probe.process": self._probe_process,
            "probe.destination": self._probe_destination,
            "sync.look": self._sync_look,
            "probe.workloads": self._probe_workloads,
            "probe.health": self._probe_health,
            "cordon.put": self._cordon_put,
            "cordon.lift": self._cordon_lift,
            "source.prepare": self._source_prepare,
            "source.run": self._source_run,
            "source.cancel": self._source_cancel,
            "source.resolve": self._source_resolve,
            "destination.prepare": self._destination_prepare,
            "destination.run": self._destination_run,
            "source.resume": self._source_resume,
            "source.serve": self._source_serve,
            "destination.resume": self._destination_resume,
            "destination.fill": self._destination_fill,
            "journal.list": self._journal_list,
            "recovery.settle": self._recovery_settle,
            "recovery.forget": self._recovery_forget,
            "doctor.look": self._doctor_look,
            "doctor.fix": self._doctor_fix,
        }
        for name, handler in handlers.items():
            self._server.expose(name, handler)

    @property
    def active(self) -> list[Migration]:
        """The migration this agent takes part in, if any."""
        parts = (self.source, self.destination, self._resumed)
        return [one for one in parts if one is not None]

    async def _probe_host(self, images_dir: str) -> Any:
        from agent import probe

        return await probe.host(images_dir=images_dir)

    async def _probe_process(self, pid: int) -> Any:
        from agent import probe

        return await probe.process(pid=pid)

    async def _probe_destination(self, process: dict[str, Any], images_dir: str) -> Any:
        from agent import probe

        return await probe.destination(process=process, images_dir=images_dir)

    async def _sync_look(self, paths: list[str]) -> Any:
        from agent.sync import look

        return await asyncio.to_thread(look.look, look.checked(paths))

    async def _probe_workloads(self, pid_files: list[str]) -> Any:
        from agent import probe

        return await probe.workloads(pid_files=pid_files)

    async def _probe_health(self, kind: str, what: str, seconds: float) -> Any:
        from agent import probe

        return await probe.health(kind=kind, what=what, seconds=seconds)

    async def _cordon_put(self, reason: str) -> Any:
        from agent import cordon

        return await asyncio.to_thread(cordon.put, reason)

    async def _cordon_lift(self) -> Any:
        from agent import cordon

        return {"lifted": await asyncio.to_thread(cordon.lift)}

    async def _source_prepare(self, plan: dict[str, Any]) -> Any:
        from agent.source import SourceMigration

        with self._serving("source"):
            migration = SourceMigration(self._server)
            reply = await migration.prepare(plan=plan)
            self.source = migration
        return reply

    async def _source_run(self, link: dict[str, Any]) -> Any:
        return await self._prepared("source", "source.run").run(link=link)

    async def _source_cancel(self) -> Any:
        return await self._prepared("source", "source.cancel").cancel()

    async def _source_resolve(self, committed: bool) -> Any:
        return await self._prepared("source", "source.resolve").resolve(committed=committed)

    async def _destination_prepare(
        self, plan: dict[str, Any], client_key: str, source_id: str, returns: bool = False
    ) -> Any:
        """`returns`: the process was moved away from this host, which is being emptied."""
        from agent import cordon
        from agent.destination import DestinationMigration

        with self._serving("destination"):
            if returns is not True:
                named = plan.get("destination") if isinstance(plan, dict) else None
                cordon.check(named if isinstance(named, str) else "this host")
            migration = DestinationMigration(self._server)
            reply = await migration.prepare(plan=plan, client_key=client_key, source_id=source_id)
            self.destination = migration
        return reply

    async def _destination_run(self) -> Any:
        return await self._prepared("destination", "destination.run").run()

    async def _source_resume(self, migration: str) -> Any:
        from agent.resuming import ResumedSource

        self._resumed = resumed = ResumedSource(self._server, migration)
        return resumed.prepare()

    async def _source_serve(self, link: dict[str, Any]) -> Any:
        return await self._resumed_as("source", "source.serve").serve(link)

    async def _destination_resume(self, migration: str, client_key: str) -> Any:
        from agent.resuming import ResumedDestination

        self._resumed = resumed = ResumedDestination(self._server, migration)
        return await resumed.prepare(client_key)

    async def _destination_fill(self) -> Any:
        return await self._resumed_as("destination", "destination.fill").fill()

    def _resumed_as(self, role: str, call: str) -> Any:
        if self._resumed is None or self._resumed.role != role:
            raise NotPrepared(call=call, role=role)
        return self._resumed

    async def _journal_list(self) -> Any:
        from agent import journal

        here = journal.own_host()
        found, damaged = journal.look()
        rows = [{**one.summary(), "host_id": here} for one in found]
        return {"journals": rows, "damaged": [error.to_wire() for error in damaged]}

    async def _recovery_settle(
        self, migration: str, role: str, word: str | None, patience: float
    ) -> Any:
        from agent import recovery
        from agent.journal import checked_name

        checked_name(migration, role)
        if not isinstance(patience, int | float) or not 0 <= patience <= _MAX_PATIENCE:
            raise ProtocolError(detail=f"{shown(patience)} is no number of seconds to wait")
        settled = await asyncio.to_thread(
            recovery.settle_when_free, migration, role, word, float(patience)
        )
        return settled.to_wire()

    async def _recovery_forget(self, migration: str) -> Any:
        from agent import recovery
        from agent.journal import checked_name
        from agent.protocol import DESTINATION

        checked_name(migration, DESTINATION)
        return {"forgotten": recovery.forget(migration)}

    async def _doctor_look(self) -> Any:
        from agent import leftovers

        return await leftovers.look()

    async def _doctor_fix(self) -> Any:
        from agent import leftovers

        return await leftovers.fix()

    @contextlib.contextmanager
    def _serving(self, role: str) -> Iterator[None]:
        """Have this agent serve one migration, in this role; no longer where preparing fails."""
        if self._role is not None:
            raise AlreadyPrepared(role=self._role)
        self._role, self._preparing = role, asyncio.current_task()
        try:
            yield
        except BaseException:
            self._role = None
            raise
        finally:
            self._preparing = None

    def stop_preparing(self) -> None:
        """Nobody will tell this agent to run: what was got ready is given up."""
        if self._preparing is not None:
            self._preparing.cancel()

    def _prepared(self, role: str, call: str) -> Any:
        migration = getattr(self, role)
        if migration is None:
            raise NotPrepared(call=call, role=role)
        return migration


async def serve(read_fd: int, write_fd: int) -> None:
    """Serve the orchestrator on the two descriptors until it is gone and all is settled."""
    transport: StdioTransport
    server: Server
    lease = Lease()
    loop = asyncio.get_running_loop()

    def received(data: bytes) -> None:
        lease.heard()
        server.feed(data)

    def beat() -> None:
        if lease.missed():
            transport.ended.set()
        else:
            loop.call_later(BEAT, beat)

    transport = StdioTransport(read_fd, write_fd, received)
    server = Server(transport)
    calls = Calls(server)
    calls.expose_all()
    server.on_event(ALIVE, lease.begin)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, transport.ended.set)
    server.hello()
    transport.start()
    beat()

    await transport.ended.wait()
    if transport.failure is not None:
        with contextlib.suppress(OSError):  # the one who would read it may be gone
            print(f"streamferry: {transport.failure}", file=sys.stderr, flush=True)
    server.disconnected.set()
    transport.close()  # whoever waits for room to write goes on
    calls.stop_preparing()
    told: list[Migration] = []
    while True:
        for migration in calls.active:
            if migration not in told:  # it may just have been prepared
                told.append(migration)
                await migration.orchestrator_gone()
        if not server.busy:
            return
        await server.finish()
