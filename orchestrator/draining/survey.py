"""Looks at a node and its destinations before anything moves: what could go where, or why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.errors import EXIT_REFUSED, AgentError
from agent.plan import Plan
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate
from agent.probe.running import Running
from orchestrator.draining.agents import Agents
from orchestrator.draining.placement import Load, Placed, Room, place
from orchestrator.errors import told
from orchestrator.placement import endpoint
from orchestrator.plan import Options, plan
from orchestrator.playbook.model import PACK, Drain, Host, Migrate
from orchestrator.refusals import Refusal
from orchestrator.sync import Seen, Wish, to_look_at

_AT_ONCE = 8  # processes that are looked at
Told = dict[str, str]  # {"code", "message", "hint"}


class NoDestination(AgentError):
    code = "no-destination"
    template = "{name} fits nowhere: {detail}"
    hint_template = "Name more destinations, or make room on one."
    exit_status = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Wanted:
    """A process tree that is to be moved, and how."""

    key: str
    pid: int
    to: tuple[str, ...]  # of the destinations; all of them where empty
    migrate: Migrate


@dataclass(slots=True)
class Surveyed:
    """What was found. Each that was wanted is placed, or cannot move."""

    placed: dict[str, str] = field(default_factory=dict)  # key -> host
    cannot: dict[str, Told] = field(default_factory=dict)  # key -> why
    memory: dict[str, int] = field(default_factory=dict)
    address: dict[str, str] = field(default_factory=dict)  # the first service address
    unreached: dict[str, AgentError] = field(default_factory=dict)  # destinations


def options_of(migrate: Migrate, returns: bool = False) -> Options:
    """The options of one migration. Raises `UsageProblem` where they make no sense."""
    return Options(
        max_blackout=migrate.max_blackout,
        images_dir=migrate.images_dir,
        address=tuple(migrate.addresses),
        memory_mode=migrate.memory,
        max_rounds=migrate.max_rounds,
        bandwidth=migrate.bandwidth or 0,
        sync=Wish(tuple(dict.fromkeys(migrate.sync)), migrate.sync_open),
        missing_options=migrate.without_missing_options,
        returns=returns,
    )


async def running(agents: Agents, node: str, pid_files: Iterable[str]) -> Running:
    """What runs on the node. Raises `AgentError`."""
    files = list(dict.fromkeys(pid_files))
    return await agents.ask(node, lambda agent: agent.workloads(files))


async def host_facts(agents: Agents, host: str, images_dir: str) -> HostFacts:
    """Raises `AgentError`."""
    facts = await agents.ask(host, lambda agent: agent.probe_host(images_dir))
    return validate(facts, HostFacts, f"the facts of {host}")


async def survey(
    agents: Agents, drain: Drain, hosts: Mapping[str, Host], wanted: list[Wanted]
) -> Surveyed:
    """Look at all that is wanted, and place it. Raises `AgentError` where the node is not reached.

    `hosts`: the destinations, with what the inventory says of each.
    """
    return await _Survey(agents, drain, hosts, wanted).go()


class _Survey:
    def __init__(
        self, agents: Agents, drain: Drain, hosts: Mapping[str, Host], wanted: list[Wanted]
    ) -> None:
        self._agents, self._drain, self._hosts, self._wanted = agents, drain, hosts, wanted
        self._facts: dict[tuple[str, str], HostFacts] = {}
        self._found = Surveyed()
        self._refused: dict[str, dict[str, list[Refusal]]] = {}  # key -> host -> all reasons
        self._loads: dict[str, Load] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def go(self) -> Surveyed:
        await self._look_at_hosts()
        await asyncio.gather(*map(self._look_at, self._wanted))
        loads = [self._loads[one.key] for one in self._wanted if one.key in self._loads]
        rooms = [self._place(name) for name in self._hosts if name not in self._found.unreached]
        drain = self._drain
        placed = place(loads, rooms, drain.max_parallel, drain.placement == PACK)
        self._found.placed = placed.where
        for key in placed.why_not:
            self._found.cannot[key] = self._why(key, placed)
        return self._found

    async def _look_at_hosts(self) -> None:
        directories = {one.migrate.images_dir for one in self._wanted}
        for directory in directories:
            node = self._drain.node
            self._facts[node, directory] = await host_facts(self._agents, node, directory)

        async def one(host: str, directory: str) -> None:
            try:
                self._facts[host, directory] = await host_facts(self._agents, host, directory)
            except AgentError as error:
                self._found.unreached[host] = error

        await asyncio.gather(*(one(host, path) for host in self._hosts for path in directories))

    def _place(self, name: str) -> Room:
        facts = next(facts for (host, _), facts in self._facts.items() if host == name)
        said = self._hosts[name]
        return Room(
            name=name,
            memory=facts["memory_available"],
            images_in_memory=facts["images"]["tmpfs"],
            workloads=said.capacity.workloads if said.policies.accept else 0,
            memory_limit=said.capacity.memory,
        )

    async def _look_at(self, one: Wanted) -> None:
        async with self._room:
            try:
                facts = await self._agents.ask(
                    self._drain.node, lambda agent: agent.probe_process(one.pid)
                )
                process = validate(facts, ProcessFacts, "the facts of the process")
            except AgentError as error:
                self._found.cannot[one.key] = told(error)
                return
            against: dict[str, str] = {}
            self._refused[one.key] = {}
            for host in self._hosts:
                if reasons := await self._judge(one, host, process):
                    against[host] = reasons[0].message
                    self._refused[one.key][host] = reasons
            self._found.memory[one.key] = process["memory"]
            self._loads[one.key] = _load(one, process, against)

    async def _judge(self, one: Wanted, host: str, process: ProcessFacts) -> list[Refusal]:
        """Why it cannot go to a host; empty where it can."""
        if error := self._found.unreached.get(host):
            return [Refusal(error.code, error.message, error.hint)]
        options = options_of(one.migrate)
        node, directory = self._drain.node, options.images_dir
        sent: dict[str, Any] = dict(process)
        try:
            found = await self._agents.ask(
                host, lambda agent: agent.probe_destination(sent, directory)
            )
            facts = (self._facts[node, directory], self._facts[host, directory])
            seen = await self._look_at_files(host, options.sync, process, found)
            made = plan(node, host, *facts, process, found, options, seen)
        except AgentError as error:
            return [Refusal(error.code, error.message, error.hint)]
        if isinstance(made, Plan):
            if made.addresses:
                self._found.address[one.key] = made.addresses[0].address
            return []
        return made

    async def _look_at_files(
        self, host: str, wish: Wish, process: ProcessFacts, found: object
    ) -> Seen | None:
        """What both hosts have of what is to be brought along. Raises `AgentError`."""
        if not wish.any:
            return None
        facts = validate(found, DestinationFacts, f"the facts of {host}")
        paths = to_look_at(wish, process, facts)
        return Seen(
            await self._agents.ask(self._drain.node, lambda agent: agent.look_at_paths(paths)),
            await self._agents.ask(host, lambda agent: agent.look_at_paths(paths)),
        )

    def _why(self, key: str, placed: Placed) -> Told:
        """Why something is not placed: the first reason that holds everywhere, or each host's."""
        refused = self._refused[key]
        asked = [name for name in self._hosts if self._may(key, name)]
        for one in refused[asked[0]] if asked and asked[0] in refused else []:
            if all(one.code in {other.code for other in refused.get(h, [])} for h in asked):
                return {"code": one.code, "message": one.message, "hint": one.hint}
        why = {**placed.why_not[key], **{host: rows[0].message for host, rows in refused.items()}}
        detail = "; ".join(f"{host}: {why[host]}" for host in asked if why.get(host))
        return told(NoDestination(name=key, detail=detail or "no destination is left"))

    def _may(self, key: str, host: str) -> bool:
        to = self._loads[key].to
        return not to or host in to


def _load(one: Wanted, process: ProcessFacts, against: dict[str, str]) -> Load:
    ports = {f"tcp {endpoint(end['address'], end['port'])}" for end in process["listeners"]}
    ports |= {
        f"{end['protocol']} {endpoint(end['address'], end['port'])}" for end in process["bound"]
    }
    return Load(
        key=one.key,
        memory=process["memory"],
        pids=frozenset(tid for member in process["processes"] for tid in member["threads"]),
        ports=frozenset(ports),
        against=against,
        to=one.to,
    )
