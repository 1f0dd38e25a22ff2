"""An agent as the orchestrator sees it: one typed stub per call, events by callback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypedDict

from agent import PROTOCOL_VERSION
from agent.cordon import CordonFacts
from agent.errors import AgentError, ProtocolError, VersionMismatch
from agent.lease import ALIVE, BEAT
from agent.leftovers.facts import Fixed, Look
from agent.probe.facts import validate
from agent.probe.running import Running
from agent.probe.service import HealthFacts
from agent.sync.look import SyncFacts
from agent.wire.frames import FrameDecoder, Message, encode
from orchestrator.errors import AgentGarbled, AgentSilent, from_wire

HELLO_TIMEOUT = 30.0
ANSWER_TIMEOUT = 60.0  # seconds for a call that only looks, or gets ready
FIX_TIMEOUT = 300.0  # seconds for all undoings of a host: each waits up to a minute for CRIU
SETTLE_TIMEOUT = 90.0  # seconds over a recovery's patience: an undo waits up to a minute for CRIU

Facts = dict[str, Any]


class SourcePrepared(TypedDict):
    public_key: str  # of the link's one client
    host_id: str


class ClientKey(TypedDict):
    public_key: str  # of the link's one client


class LinkFacts(TypedDict):
    addresses: list[str]  # where the link's one-time port may be reached
    port: int
    host_key: str
    zstd: bool  # whether that host can take what is compressed


class DestinationPrepared(LinkFacts):
    host_id: str


class JournalFacts(TypedDict):
    """One migration that is not over on a host."""

    id: str
    role: str
    state: str
    at: int | float  # seconds since the epoch, of the last record
    pid: int
    source: str
    destination: str
    host_id: str
    other_host: str  # the other host's id; "" where it is not known


class JournalProblem(TypedDict):
    """Why a journal cannot be gone by: an error, as it crosses the wire."""

    code: str
    fields: dict[str, str | int | float]


class JournalList(TypedDict):
    journals: list[JournalFacts]
    damaged: list[JournalProblem]


class SettledFacts(TypedDict):
    """What `agent.recovery.Settled` has."""

    role: str
    found: str
    state: str
    word: str | None
    living: list[int]
    lost: bool
    host_id: str


EventHandler = Callable[[dict[str, Any]], Awaitable[None] | None]


class Channel(Protocol):
    """The byte stream to an agent (`orchestrator.transport.SshChannel`)."""

    host: str
    addresses: list[str]

    def chunks(self) -> AsyncIterator[bytes]: ...
    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    async def why_ended(self) -> AgentError: ...
    async def close(self, patience: float) -> None: ...
    def abort(self) -> None: ...


class AgentClient:
    """Calls to one agent. A call raises what the agent answered with (`AgentError`), or the
    reason why the agent is gone (a `HostError`)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._decoder = FrameDecoder()
        self._next = 1
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._events: dict[str, EventHandler] = {}
        self._hello: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._hello.add_done_callback(_retrieve)
        self._reader: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._gone: AgentError | None = None
        self._spoilt = False

    @property
    def host(self) -> str:
        return self._channel.host

    @property
    def addresses(self) -> list[str]:
        """Where the host's sshd was reached."""
        return self._channel.addresses

    @property
    def gone(self) -> bool:
        """Whether nothing more will come from it."""
        return self._gone is not None

    async def start(self) -> None:
        """Await the agent's hello. Raises a `HostError` or `VersionMismatch`."""
        self._reader = asyncio.create_task(self._read())
        try:
            hello = await asyncio.wait_for(asyncio.shield(self._hello), HELLO_TIMEOUT)
        except TimeoutError:
            raise AgentSilent(host=self.host, seconds=HELLO_TIMEOUT) from None
        if hello["hello"] != PROTOCOL_VERSION:
            raise VersionMismatch(theirs=str(hello["hello"]), ours=PROTOCOL_VERSION)
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        """Renew the agent's lease; without, it would take this side for gone."""
        while self._gone is None:
            with contextlib.suppress(Exception):  # the reader tells why it is gone
                self._write({"event": ALIVE, "data": {}})
            await asyncio.sleep(BEAT)

    def on_event(self, name: str, handler: EventHandler) -> None:
        """Have `handler` called with the data of each event `name`. What it awaits holds up
        the reading from this agent (back-pressure)."""
        self._events[name] = handler

    async def send_event(self, name: str, data: dict[str, Any]) -> None:
        """Tell the agent; returns when there is room for more."""
        if self._gone is None:
            self._write({"event": name, "data": data})
            await self._channel.drain()

    def _write(self, message: Message) -> None:
        data = encode(message)
        if self._spoilt:
            self._spoilt, data = False, bytes([data[0] ^ 0x80]) + data[1:]
        self._channel.write(data)

    def spoil(self) -> None:
        """Have a bit flipped in the next message, as a fault."""
        self._spoilt = True

    def abort(self) -> None:
        """Break the connection off, as a fault."""
        self._channel.abort()

    async def close(self, patience: float = 15.0) -> None:
        """Let the agent go: it settles what is under way within `patience` seconds."""
        if self._beating is not None:
            self._beating.cancel()
        await self._channel.close(patience)
        for task in filter(None, (self._reader, self._beating)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # The calls, one stub each.

    async def probe_host(self, images_dir: str) -> Facts:
        return await self._soon("probe.host", images_dir=images_dir)

    async def probe_process(self, pid: int) -> Facts:
        return await self._soon("probe.process", pid=pid)

    async def probe_destination(self, process: Facts, images_dir: str) -> Facts:
        return await self._soon("probe.destination", process=process, images_dir=images_dir)

    async def look_at_paths(self, paths: Sequence[str]) -> SyncFacts:
        """What that host has at the paths that are to be brought, and its rsync."""
        answer = await self._soon("sync.look", paths=list(paths))
        return validate(answer, SyncFacts, f"{self.host}'s paths")

    async def workloads(self, pid_files: list[str]) -> Running:
        """What runs on that host, and whom those files there name."""
        answer = await self._soon("probe.workloads", pid_files=pid_files)
        return validate(answer, Running, f"{self.host}'s processes")

    async def health(self, kind: str, what: str, seconds: float) -> HealthFacts:
        """Whether a service of that host is well (`agent.probe.service`)."""
        args = {"kind": kind, "what": what, "seconds": seconds}
        answer = await self._within(seconds + ANSWER_TIMEOUT, "probe.health", args)
        return validate(answer, HealthFacts, f"{self.host}'s word on a service")

    async def cordon(self, reason: str) -> CordonFacts:
        """Have it take no process in; the cordon that holds there."""
        answer = await self._soon("cordon.put", reason=reason)
        return validate(answer, CordonFacts, f"{self.host}'s cordon")

    async def uncordon(self) -> bool:
        """Whether it was cordoned."""
        return bool((await self._soon("cordon.lift")).get("lifted"))

    async def source_prepare(self, plan: Facts) -> SourcePrepared:
        answer = await self._soon("source.prepare", plan=plan)
        return validate(answer, SourcePrepared, f"{self.host}'s part")

    async def destination_prepare(
        self, plan: Facts, source: SourcePrepared, returns: bool = False
    ) -> DestinationPrepared:
        """`returns`: the process comes back to a host that is being emptied."""
        keys: Facts = {"client_key": source["public_key"], "source_id": source["host_id"]}
        keys |= {"returns": True} if returns else {}
        answer = await self._soon("destination.prepare", plan=plan, **keys)
        return validate(answer, DestinationPrepared, f"{self.host}'s part")

    async def source_run(self, link: DestinationPrepared) -> Facts:
        """The source's report, when all is over there."""
        return await self._map("source.run", link=link)

    async def destination_run(self) -> Facts:
        """The destination's report, when all is over there."""
        return await self._map("destination.run")

    async def source_cancel(self) -> bool:
        """Whether the migration will be undone; False once it is too late."""
        return bool((await self._map("source.cancel")).get("accepted"))

    async def source_resolve(self, committed: bool) -> Facts:
        """Tell a source in doubt what the destination did; its final report."""
        return await self._map("source.resolve", committed=committed)

    async def source_resume(self, migration: str) -> ClientKey:
        """Have a new agent serve the memory of a copy that its agent has left frozen."""
        answer = await self._soon("source.resume", migration=migration)
        return validate(answer, ClientKey, f"{self.host}'s part")

    async def source_serve(self, link: LinkFacts) -> None:
        """Returns when the destination needs no more, or the link is gone."""
        await self._map("source.serve", link=link)

    async def destination_resume(self, migration: str, client_key: str) -> LinkFacts:
        """Have a new agent take in the memory of a process that runs there already."""
        keys = {"migration": migration, "client_key": client_key}
        answer = await self._soon("destination.resume", **keys)
        return validate(answer, LinkFacts, f"{self.host}'s part")

    async def destination_fill(self) -> None:
        """Returns when nothing is missing any more, and that is on disk."""
        await self._map("destination.fill")

    async def journals(self) -> tuple[list[JournalFacts], list[AgentError]]:
        """The journals of migrations on that host, oldest first, and what is wrong with those that
        cannot be gone by."""
        answer = await self._soon("journal.list")
        listed = validate(answer, JournalList, f"{self.host}'s journals")
        damaged = [{**one["fields"], "host": self.host} for one in listed["damaged"]]
        return listed["journals"], [
            from_wire({"code": one["code"], "fields": fields})
            for one, fields in zip(listed["damaged"], damaged, strict=True)
        ]

    async def settle(
        self, migration: str, role: str, word: str | None, patience: float
    ) -> SettledFacts:
        """Bring what a dead agent left to its end; `word`: what the destination said."""
        args = {"migration": migration, "role": role, "word": word, "patience": patience}
        answer = await self._within(patience + SETTLE_TIMEOUT, "recovery.settle", args)
        return validate(answer, SettledFacts, f"{self.host}'s recovery")

    async def forget(self, migration: str) -> None:
        """Tell it that all is over and told, and nobody will ask any more."""
        await self._soon("recovery.forget", migration=migration)

    async def look(self) -> Look:
        """What interrupted migrations have left on that host; nothing is touched."""
        answer = await self._soon("doctor.look")
        return validate(answer, Look, f"{self.host}'s leftovers")

    async def fix(self) -> Fixed:
        """Clear what of it is safe."""
        answer = await self._within(FIX_TIMEOUT, "doctor.fix", {})
        return validate(answer, Fixed, f"{self.host}'s leftovers")

    async def _soon(self, call: str, **args: Any) -> Facts:
        return await self._within(ANSWER_TIMEOUT, call, args)

    async def _within(self, seconds: float, call: str, args: dict[str, Any]) -> Facts:
        """As `_map`, but not for ever. Raises `AgentSilent`, too."""
        try:
            async with asyncio.timeout(seconds):
                return await self._map(call, **args)
        except TimeoutError:
            raise AgentSilent(host=self.host, seconds=f"{seconds:.0f}") from None

    async def _map(self, call: str, **args: Any) -> Facts:
        result = await self._call(call, args)
        if not isinstance(result, dict):
            raise AgentGarbled(host=self.host, detail=f"{call} returned {str(result):.80}")
        return result

    async def _call(self, call: str, args: dict[str, Any]) -> Any:
        if self._gone is not None:
            raise self._gone
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._write({"id": number, "call": call, "args": args})
            await self._channel.drain()
            return await future
        finally:
            self._waiting.pop(number, None)

    async def _read(self) -> None:
        reason: AgentError
        try:
            async for data in self._channel.chunks():
                for message in self._decoder.feed(data):
                    await self._handle(message)
            reason = await self._channel.why_ended()
        except ProtocolError as error:
            reason = AgentGarbled(host=self.host, detail=str(error.fields.get("detail", error)))
        except asyncio.CancelledError:
            reason = AgentSilent(host=self.host, seconds=0)
        except Exception as error:  # a fault of ours must not leave the calls waiting for ever
            reason = AgentError(detail=f"reading from {self.host}: {error!r}")
        self._gone = reason
        for future in (*self._waiting.values(), self._hello):
            if not future.done():
                future.set_exception(reason)
                future.exception()

    async def _handle(self, message: Message) -> None:
        if not self._hello.done():
            if not isinstance(message.get("hello"), int):
                raise ProtocolError(detail="the first message is not a hello")
            self._hello.set_result(message)
            return
        if "event" in message:
            data = message.get("data")
            if not isinstance(message["event"], str) or not isinstance(data, dict):
                raise ProtocolError(detail="an event without a name or data")
            handler = self._events.get(message["event"])
            waits = handler(data) if handler is not None else None
            if waits is not None:
                await waits
            return
        number = message.get("id")
        if not isinstance(number, int) or not ("result" in message or "error" in message):
            raise ProtocolError(detail="a message that is neither a reply nor an event")
        future = self._waiting.get(number)
        if future is None or future.done():
            return  # nobody waits for this reply any more
        if "error" in message:
            future.set_exception(from_wire(message["error"]))
        else:
            future.set_result(message["result"])


def _retrieve(future: asyncio.Future[Message]) -> None:
    if not future.cancelled():
        future.exception()
