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
from agent.memory.paging import Left, Paging
from agent.memory.serving import Serving
from agent.plan import Plan
from agent.protocol import DESTINATION, SOURCE, TABLES, Found, Machine
from agent.server import Server
from agent.successor import Successor
from agent.tasks import first_of, together

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
        serving = Serving(self._link, self.successor.living)
        talk: Conversation | None = None
        try:
            self._link.squeeze(squeezer(link.get("zstd")))
            if not await self._client.connect(*where(link)):
                self._relay.open()
            await self._opened()
            over = asyncio.Event()
            talk = Conversation(self._link, lambda _: over.set())
            talk.on(serving.hear, "missing", "want", "got")
            async with together(serving.run(), over.wait()) as tasks:
                await first_of(tasks)
                if tasks[0].done():
                    tasks[0].result()
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
    _listener: LinkServer | None = None

    async def prepare(self, client_key: str) -> dict[str, Any]:
        """Raises `PagerGone`."""
        try:
            self._listener = LinkServer(self._link, client_key)
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
        try:
            await self._opened()
            await self._paging.restored()
            left = Left(self._server.send_event)
            with contextlib.closing(Filling(self._link, self._paging, left.told)) as filling:
                await self._fill(filling)
        finally:
            self._paging.close()
            self._end()
        return {"complete": True}

    async def _fill(self, filling: Filling) -> None:
        filling.ask()
        filled = self._paging.filled(filling.heard)
        async with together(filling.complete.wait(), filled, self._records(filling)) as tasks:
            await first_of(tasks)
            if not filling.complete.is_set():
                for one in tasks:
                    if one.done():
                        one.result()
            history = self._journal.history
            Machine(TABLES[DESTINATION], self._journal.record, history.state).on("filled")
            await asyncio.wait({tasks[1]}, timeout=_IN_PLACE)

    async def _records(self, filling: Filling) -> None:
        while True:
            record = await self._link.receive()
            if record["kind"] == "pages":
                await filling.take(record)

    def _end(self) -> None:
        if self._listener is not None:
            self._listener.stop_listening()
        super()._end()
