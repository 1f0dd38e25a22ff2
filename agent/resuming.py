"""Goes on bringing memory to a process that runs at the destination, where an agent left off.

After a link that broke, or an agent that died, in post-copy: the source's copy is frozen, and the
destination's process and its pager wait. New agents of both hosts take up nothing but that; when
all has come, the destination has `committed`, and a recovery carries that word (`agent.protocol`).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from agent.conversation import Conversation
from agent.errors import EXIT_IN_DOUBT, AgentError, PeerLost
from agent.image.squeeze import squeezer
from agent.journal import Journal, checked_name
from agent.link import Link, Relay, reached_address
from agent.login import LinkClient, LinkServer, where
from agent.memory.filling import Filling
from agent.memory.paging import Paging
from agent.memory.serving import Serving
from agent.plan import Plan
from agent.protocol import DESTINATION, SOURCE, TABLES, Found, Machine
from agent.server import Server
from agent.successor import Successor

_LINK_TIMEOUT = 20.0  # seconds for the link to come up
_IN_PLACE = 30.0  # seconds for the pager to place what has come; it does so without us, too


class NotFilling(AgentError):
    code = "not-filling"
    template = "migration {id} has no memory to bring at its {role}: {detail}"
    hint_template = "See `migrate recover {id}`."
    exit_status = EXIT_IN_DOUBT


class PagerGone(AgentError):
    code = "pager-gone"
    template = "what gave the process its memory at the destination was killed: {detail}"
    hint_template = (
        "Pages that had not come are zeros to it: end the process, then `migrate recover {id} "
        "--lost SOURCE` once the source's copy is ended, too."
    )
    exit_status = EXIT_IN_DOUBT


class _Resumed:
    """What both have: the journal, whose lock is held meanwhile, and a link."""

    role: str

    def __init__(self, server: Server, migration: str) -> None:
        """Raises `NotFilling`, `JournalBusy`, `JournalError`."""
        checked_name(migration, self.role)
        self._id = migration
        self._server = server
        journal = Journal.open(migration, self.role)
        if journal is None:
            raise NotFilling(id=migration, role=self.role, detail="nothing is known of it")
        self._journal = journal
        try:
            self._check()
            self.successor = Successor(journal.history)
            if not self.successor.living:
                raise NotFilling(id=migration, role=self.role, detail="its copy has gone")
            self.plan: Plan = self.successor.plan
            self._link = Link(lambda: "post_copy")
            relay = Relay(self._link, server.send_event)
            self._relay = relay
            server.on_event("relay", relay.event)
        except BaseException:
            journal.close()
            raise

    def _check(self) -> None:
        state = TABLES[self.role].states[self._journal.history.state]
        wanted = Found.ASK if self.role == SOURCE else Found.WAIT
        if state.found is not wanted:
            raise NotFilling(id=self._id, role=self.role, detail=f"it is {state.name}")

    def _end(self) -> None:
        self._link.close()
        self._journal.close()

    async def orchestrator_gone(self) -> None:
        """A link of its own lasts; without it, nothing does."""
        if self._link.relayed or not self._link.opened.is_set():
            self._link.ended(None)
            self._link.opened.set()

    async def _opened(self) -> None:
        try:
            async with asyncio.timeout(_LINK_TIMEOUT):
                await self._link.opened.wait()
        except TimeoutError:
            raise PeerLost(phase="post_copy", detail="it did not come up in time") from None


class ResumedSource(_Resumed):
    """Serves from the frozen copy."""

    role = SOURCE

    def prepare(self) -> dict[str, Any]:
        self._client = LinkClient(self._link)
        return {"public_key": self._client.public_key}

    async def serve(self, link: dict[str, Any]) -> dict[str, Any]:
        """Until the destination has all, or the link is lost. Raises `MemoryGone`, `PeerLost`."""
        serving = Serving(self._link, self.successor.living, lambda _done, _left: None)
        talk: Conversation | None = None
        try:
            self._link.squeeze(squeezer(link.get("zstd")))
            if not await self._client.connect(*where(link)):
                self._relay.open()
            await self._opened()
            over = asyncio.Event()
            talk = Conversation(self._link, lambda _: over.set())
            talk.on(serving.hear, "missing", "want", "got")
            tasks = [asyncio.ensure_future(serving.run()), asyncio.ensure_future(over.wait())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[0].done():
                    tasks[0].result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if talk is not None:
                await talk.close()
            serving.close()
            self._client.close()
            self._end()
        return {"bytes": serving.bytes}


class ResumedDestination(_Resumed):
    """Takes it in, by the pager that lives."""

    role = DESTINATION

    async def prepare(self, client_key: str) -> dict[str, Any]:
        """Raises `PagerGone`."""
        self._listener = LinkServer(self._link, client_key)
        try:
            try:
                self._paging = Paging(Path(self.plan.images_dir, self.plan.id), start=False)
            except OSError as error:
                raise PagerGone(id=self._id, detail=error.strerror or str(error)) from None
            reply = await self._listener.listen(reached_address() or "127.0.0.1")
        except BaseException:
            self._end()
            raise
        reply["addresses"] = list(dict.fromkeys([*self.plan.link_hosts, *reply["addresses"]]))
        return reply

    async def fill(self) -> dict[str, Any]:
        """Until all has come, which is then decided on. Raises `PeerLost`, `PagerFailed`."""
        left = _Left(self._server)
        filling: Filling | None = None
        tasks: list[asyncio.Future[Any]] = []
        try:
            await self._opened()
            await self._paging.restored()
            filling = Filling(self._link, self._paging, left.told)
            filling.ask()
            complete = asyncio.ensure_future(filling.complete.wait())
            tasks = [
                complete,
                asyncio.ensure_future(self._paging.filled(filling.heard)),
                asyncio.ensure_future(self._records(filling)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not filling.complete.is_set():
                for one in done:
                    one.result()
            machine = Machine(
                TABLES[DESTINATION], self._journal.record, self._journal.history.state
            )
            machine.on("filled")
            await asyncio.wait({tasks[1]}, timeout=_IN_PLACE)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if filling is not None:
                filling.close()
            self._paging.close()
            self._listener.stop_listening()
            self._end()
        return {"complete": True}

    async def _records(self, filling: Filling) -> None:
        while True:
            record = await self._link.receive()
            if record["kind"] == "pages":
                await filling.take(record)

    def _end(self) -> None:
        with contextlib.suppress(AttributeError):
            self._listener.stop_listening()
        super()._end()


class _Left:
    """Tells the orchestrator how far it is."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._total = 0

    def told(self, left: int) -> None:
        self._total = max(self._total, left)
        done = self._total - left
        self._server.send_event("progress", {"what": "fill", "done": done, "total": self._total})
