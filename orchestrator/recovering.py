"""`migrate recover`: find the migrations that are meant, reach their hosts, and end each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.errors import (
    EXIT_IN_DOUBT,
    EXIT_MIGRATED,
    EXIT_REFUSED,
    EXIT_ROLLED_BACK,
    AgentError,
)
from agent.plan import ID_PATTERN
from agent.protocol import DESTINATION, SOURCE
from agent.resuming import PagerGone
from orchestrator.agent_client import AgentClient
from orchestrator.errors import HostError
from orchestrator.filling import Patience, fill
from orchestrator.inventory import config_files, parse_target
from orchestrator.migration.result import IN_DOUBT, MIGRATED, OVER, ROLLED_BACK, Json
from orchestrator.records import Record, RecordDamaged, Records, is_open
from orchestrator.recovery import LOST, Named, Recovered, recover
from orchestrator.transport import open_agent


class UnknownMigration(AgentError):
    code = "unknown-migration"
    template = "no migration {id} was begun here"
    hint_template = (
        "Name one of its hosts: `migrate recover HOST`; `migrate list` shows those known."
    )
    exit_status = EXIT_REFUSED


class HostNotNamed(AgentError):
    code = "host-not-named"
    template = "{host} is in no migration that is to be recovered"
    hint_template = "Give the name that `migrate list` shows."
    exit_status = EXIT_REFUSED


class CopyLost(AgentError):
    """The protocol has come to its end, and the copy that should go on is gone."""

    code = "copy-lost"
    template = "process {pid} ended with {host}, which was restarted, or where it was killed"
    hint_template = "Start the service anew; nothing of the migration is left."
    exit_status = EXIT_ROLLED_BACK


class HalfEnded(AgentError):
    """One host has come to its end, and another could not be told."""

    code = "half-ended"
    template = "{detail}"
    hint_template = "Run `migrate recover {id}` as soon as it can be reached."
    exit_status = EXIT_IN_DOUBT


@dataclass(frozen=True, slots=True)
class Report:
    """One migration, and what it was brought to."""

    named: Named
    ended: Recovered

    @property
    def errors(self) -> list[AgentError]:
        sides = (self.ended.source, self.ended.destination)
        return [side for side in sides if isinstance(side, AgentError)]

    @property
    def exit_status(self) -> int:
        if self.ended.outcome == IN_DOUBT or self.ended.unfinished:
            return EXIT_IN_DOUBT
        return EXIT_ROLLED_BACK if self.ended.lost else EXIT_MIGRATED

    @property
    def loss(self) -> CopyLost | None:
        """That the copy which should go on is gone."""
        if not self.ended.lost:
            return None
        migrated = self.ended.outcome == MIGRATED
        host = self.named.destination if migrated else self.named.source
        return CopyLost(pid=self.named.pid, host=host)

    @property
    def half_ended(self) -> HalfEnded | None:
        """That a host is left to be told."""
        if self.ended.outcome == IN_DOUBT or not self.ended.unfinished:
            return None
        return HalfEnded(detail=self.sentence, id=self.named.id)

    @property
    def sentence(self) -> str:
        """The outcome and why, for a person."""
        named, ended = self.named, self.ended
        pid = f"PID {named.pid}" if named.pid else "the process"
        if ended.outcome == OVER:
            return "neither host knows of it any more: it is over"
        if ended.outcome == IN_DOUBT:
            if not isinstance(ended.source, AgentError) and not ended.source["state"]:
                return (
                    f"still in doubt: {named.source} knows nothing of it any more, and "
                    f"{named.destination} could not say how it ended"
                )
            return (
                f"still in doubt: {named.source} has handed {pid} over, and {named.destination} "
                "cannot say whether it has it; the copy here stays frozen until it can"
                if not isinstance(ended.source, AgentError)
                else "still in doubt: neither host could say how it ended"
            )
        if self.loss is not None:
            return f"{ended.outcome}, but {self.loss.message}"
        if ended.outcome == MIGRATED:
            if ended.waits:
                return (
                    f"not at its end: {pid} runs at {named.destination}, and memory of it is still "
                    f"at {named.source}"
                )
            runs = "runs there" if ended.living["destination"] else "has ended there, or moved on"
            return f"migrated: {named.destination} had committed; {pid} {runs}" + self._left(
                named.source, "source", "its frozen copy there is still to be ended"
            )
        return (
            self._rolled_back(pid)
            + self._left(named.source, "source", "which is still to be told")
            + self._left(named.destination, "destination", "which may have something to undo")
        )

    @property
    def unheard(self) -> str:
        """Of hosts that could not say how it ended, where that is known from before."""
        hosts = " and ".join(self.named.host(role)[0] for role in self.ended.unfinished)
        return (
            f"{hosts} could not be asked since, and may have something of it left to end: "
            f"`migrate recover {self.named.id}` when that is possible"
        )

    def _rolled_back(self, pid: str) -> str:
        """What has become of the two copies."""
        named, sent, taken = self.named, self.ended.source, self.ended.destination
        said = f"rolled back: {named.destination} had not committed"
        if not isinstance(taken, AgentError) and taken["found"] == LOST:
            said = f"rolled back on your word that {named.destination} is lost for good"
        if isinstance(sent, AgentError) or sent["living"]:
            return f"{said}; {pid} goes on at {named.source}"
        if sent["state"]:
            return f"{said}; {pid} has ended at {named.source}"
        return f"{said}; {pid} was left to {named.source} before, and may have ended since"

    def _left(self, host: str, role: str, what: str) -> str:
        if role not in self.ended.unfinished:
            return ""
        unreached = isinstance(getattr(self.ended, role), HostError)
        return f" ({host} could not {'be reached' if unreached else 'end its part'}: {what})"

    def to_json(self) -> dict[str, Any]:
        told = self.ended.to_json()
        for role, host in (("source", self.named.source), ("destination", self.named.destination)):
            told[role] = {"host": host, **told[role]}
        return {"id": self.named.id, "pid": self.named.pid, **told}


class Recoverer:
    """Reaches each host once."""

    def __init__(
        self,
        ssh_config: str | None,
        records: Records | None = None,
        lost: str | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`lost`: the name of a host that will never come back; `note` is told what is done."""
        self._note = note
        self._ssh_config = ssh_config
        self._lost = lost
        self._records = records or Records()
        self._agents: dict[tuple[str, str | None], AgentClient | AgentError] = {}
        self._configs: dict[str, str | None] = {}  # by migration: what it was begun with
        # Records, or journals of the host, that may name more than was recovered.
        self.damaged: list[AgentError] = []
        self.unwritten: list[str] = []  # what could not be written down, in words
        self._given_up = asyncio.Event()
        self.first_ends: list[Json] = []  # results of those that had none before

    async def recover(self, what: str | None) -> list[Report]:
        """End what is meant. Raises `AgentError` where nothing is known, or a host not reached."""
        try:
            reports = []
            meant = await self._meant(what)
            if self._lost and not any(self._lost in (one.source, one.destination) for one in meant):
                raise HostNotNamed(host=self._lost)
            for named in meant:
                reports.append(await self.end(named, self._remember))
            return reports
        finally:
            await self.close()

    def give_up(self) -> None:
        """Do not try again to bring memory that is missing; what is under way goes on."""
        self._given_up.set()

    async def end(self, named: Named, told: Callable[[Report], bool | None]) -> Report:
        """End one migration, as far as its hosts can be reached.

        `told` is called with the report, before the hosts forget the migration.
        """
        patience: Patience | None = None
        while True:
            config = self._configs.get(named.id)
            source, destination = await self.reach(named.source, named.destination, config=config)
            ended = await recover(
                named, source, destination, lambda ended: told(Report(named, ended)), self._lost
            )
            if not ended.waits:
                return Report(named, ended)
            patience = patience or Patience(self._given_up)
            if ended.filling and not self._given_up.is_set():
                assert isinstance(source, AgentClient) and isinstance(destination, AgentClient)
                self._note(f"bringing the rest of the memory from {named.source}")
                try:
                    await fill(source, destination, named.id, patience.progress)
                    continue
                except PagerGone:
                    return Report(named, ended)
                except AgentError as error:
                    self._note(f"it broke off: {error.message}")
            if not await patience.again():
                return Report(named, ended)
            self._forget_lost()

    def _forget_lost(self) -> None:
        """Hosts that were not reached, or not any more, are tried again."""
        for key, agent in list(self._agents.items()):
            if isinstance(agent, AgentError) or agent.gone:
                del self._agents[key]

    async def close(self) -> None:
        """Let the agents go."""
        clients = [one for one in self._agents.values() if isinstance(one, AgentClient)]
        await asyncio.gather(*(one.close() for one in clients), return_exceptions=True)

    async def _meant(self, what: str | None) -> list[Named]:
        if what is None:
            records, damaged = self._records.look()
            self.damaged = [*damaged]
            return [self._recorded(one) for one in records if is_open(one)]
        if ID_PATTERN.fullmatch(what):
            record = self._records.get(what)
            if record is None:
                raise UnknownMigration(id=what)
            return [self._recorded(record)]
        (agent,) = await self.reach(what)
        if isinstance(agent, AgentError):
            raise agent
        found = {}
        listed, self.damaged = await agent.journals()
        for one in listed:
            names = {"source": one["source"], "destination": one["destination"]}
            names[one["role"]] = what  # as it is reached now
            other = DESTINATION if one["role"] == SOURCE else SOURCE
            ids = {f"{one['role']}_id": one["host_id"], f"{other}_id": one["other_host"]}
            found[one["id"]] = Named(one["id"], **names, **ids, pid=one["pid"])
        return list(found.values())

    def _recorded(self, record: Record) -> Named:
        self._configs[record["id"]] = record["ssh_config"]
        return Named(
            record["id"], record["source"], record["destination"], record["pid"],
            record["source_id"], record["destination_id"],
        )  # fmt: skip

    async def reach(self, *hosts: str, config: str | None = None) -> list[AgentClient | AgentError]:
        """Agents at these hosts, or why there is none; `config`: where none was asked for."""
        return list(await asyncio.gather(*(self._open(host, config) for host in hosts)))

    async def _open(self, host: str, config: str | None) -> AgentClient | AgentError:
        config = self._ssh_config or config
        if (host, config) not in self._agents:
            try:
                target = parse_target(host)
                channel = await open_agent(target, config_files(config), lambda _: None)
                client = AgentClient(channel)
                await client.start()
                self._agents[host, config] = client
            except AgentError as error:
                self._agents[host, config] = error
        return self._agents[host, config]

    def _remember(self, report: Report) -> bool:
        """Whether the hosts may forget it."""
        try:
            record = self._records.get(report.named.id)
            if record is None or report.ended.outcome == IN_DOUBT or report.ended.unfinished:
                return True
            result = record["result"] or {"id": record["id"], "error": None}
            outcome = report.ended.outcome
            if result.get("outcome") in (MIGRATED, ROLLED_BACK):
                outcome = result["outcome"]
            result = {**result, "outcome": outcome, "recovered": True}
            self._records.end(report.named.id, result)
            self.first_ends += [result] if record["result"] is None else []
        except (OSError, RecordDamaged) as error:
            self.unwritten.append(f"{report.named.id} stays in `migrate list` as it was: {error}")
            return False
        return True


async def journals(
    hosts: tuple[str, ...], ssh_config: str | None
) -> tuple[list[dict[str, Any]], list[AgentError]]:
    """What the journals of several hosts have, and what is wrong with those that cannot be gone by.

    Raises `AgentError` where a host is not reached.
    """
    reacher = Recoverer(ssh_config)
    try:
        rows: list[dict[str, Any]] = []
        damaged: list[AgentError] = []
        for host, agent in zip(hosts, await reacher.reach(*hosts), strict=True):
            if isinstance(agent, AgentError):
                raise agent
            listed, unread = await agent.journals()
            rows += [{"host": host, **one} for one in listed]
            damaged += unread
        return rows, damaged
    finally:
        await reacher.close()
