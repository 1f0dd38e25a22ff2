"""How a drain begins: it finds, surveys, cordons, and writes down what is to be done."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from agent.cordon import LONGEST, because
from agent.errors import EXIT_REFUSED, AgentError
from agent.plan import DEFAULT_IMAGES_DIR, new_id
from agent.protocol import DESTINATION, DESTINATION_TABLE
from orchestrator.draining import states
from orchestrator.draining.agents import Agents
from orchestrator.draining.journal import Begun, Item, Journal
from orchestrator.draining.logged import Listener
from orchestrator.draining.selection import Found, NothingSelected, find_all, select
from orchestrator.draining.survey import Wanted, host_facts, running, survey
from orchestrator.playbook.known import Known
from orchestrator.playbook.model import Defaults, Drain, Host

_ARRIVALS = 60.0  # seconds that those under way to the node are waited for
_LOOK = 0.5
_LOOKS = 3  # at what runs there, while it changes


class NodeBusy(AgentError):
    code = "node-busy"
    template = "{ids} is still on its way onto {node}"
    hint_template = (
        "Wait for its end, or `migrate recover {node}`; then drain again: {node} stays cordoned."
    )
    exit_status = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Asked:
    """A drain that is wanted. Its destinations are hosts, no labels any more."""

    drain: Drain
    defaults: Defaults
    hosts: dict[str, Host]  # the destinations by name, with what the inventory says of them
    networks: list[str] = field(default_factory=list)  # of the node's service addresses


def ask(drain: Drain, defaults: Defaults, known: Known) -> Asked:
    """Labels become hosts."""

    def resolved(names: list[str]) -> list[str]:
        return _resolved(names, drain.node, known)

    changes: dict[str, object] = {"to": resolved(drain.to)}
    if drain.workloads is not None:
        changes["workloads"] = [
            one if one.to is None else one.model_copy(update={"to": resolved(one.to)})
            for one in drain.workloads
        ]
    made = drain.model_copy(update=changes)
    hosts = {name: known.get(name) for name in made.to}
    return Asked(made, defaults, hosts, list(known.get(drain.node).service_network))


def _resolved(names: list[str], node: str, known: Known) -> list[str]:
    found: list[str] = []
    for name in names:
        found += known.with_label(name) if "=" in name else [name]
    return [one for one in dict.fromkeys(found) if one != node]


async def look(agents: Agents, asked: Asked, listener: Listener) -> list[Item]:
    """What is to be moved: placed, or with the reason why it cannot be. Nothing is touched.

    Raises `NothingSelected`, and `AgentError` where the node cannot be reached.
    """
    found, missing = await _find(agents, asked)
    if missing and not await _was_drained(agents, asked):
        raise missing[0]
    for one in missing:
        listener.note(f"{one.message}; an earlier drain may have moved it")
    return await _surveyed(agents, asked, found, listener)


async def begin(
    agents: Agents,
    asked: Asked,
    items: list[Item],
    ssh_config: str | None,
    listener: Listener,
    drain_id: str | None = None,
) -> Journal:
    """Cordon the node, look once more, and write it down. Raises `AgentError`.

    `drain_id`: the one that the drain is to have; a new one unless given.
    """
    drain = asked.drain
    if drain.cordon:
        items = await _cordoned(agents, asked, items, listener)
    begun = Begun(
        id=drain_id or new_id(),
        begun=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        ssh_config=ssh_config,
        drain=drain,
        defaults=asked.defaults,
        hosts=asked.hosts,
    )
    journal = Journal.create(begun)
    journal.note(*items)
    return journal


async def cordon(agents: Agents, drain: Drain) -> str:
    """The reason of the cordon that holds on the node. Raises `AgentError`."""
    reason = drain.reason or "drained"
    facts = await agents.ask(drain.node, lambda agent: agent.cordon(reason[:LONGEST]))
    return because(facts)


async def survey_again(
    agents: Agents, asked: Asked, items: list[Item], listener: Listener
) -> list[Item]:
    """Place anew those that wait; what is no longer there is gone. Raises `AgentError`."""
    there = await running(agents, asked.drain.node, [])
    born = {one["pid"]: one["born"] for one in there["processes"]}
    found = [_found(one) for one in items if born.get(one.pid) == one.born]
    keys = {one.key for one in found}
    for item in items:
        if item.key not in keys:
            item.state = states.GONE
    fresh = {one.key: one for one in await _surveyed(agents, asked, found, listener)}
    return [fresh.get(one.key, one) for one in items]


async def _was_drained(agents: Agents, asked: Asked) -> bool:
    facts = await host_facts(agents, asked.drain.node, DEFAULT_IMAGES_DIR)
    return asked.drain.cordon and facts["cordon"] is not None


async def _find(agents: Agents, asked: Asked) -> tuple[list[Found], list[NothingSelected]]:
    """What is there, and what is named and is not."""
    drain = asked.drain
    workloads = drain.workloads
    files = [one.select.pid_file for one in workloads or [] if one.select.pid_file is not None]
    there = await running(agents, drain.node, files)
    if workloads is None:
        host = await host_facts(agents, drain.node, DEFAULT_IMAGES_DIR)
        return find_all(there, host, asked.networks), []
    return select(workloads, there, drain.node)


async def _surveyed(
    agents: Agents, asked: Asked, found: list[Found], listener: Listener
) -> list[Item]:
    if not found:
        return []
    by_name = {one.name: one for one in asked.drain.workloads or []}
    wanted = []
    for one in found:
        said = by_name.get(one.name)
        migrate = (said.migrate if said is not None else None) or asked.defaults.migrate
        to = tuple(said.to) if said is not None and said.to is not None else ()
        wanted.append(Wanted(one.key, one.pid, to, migrate))
    surveyed = await survey(agents, asked.drain, asked.hosts, wanted)
    for host, error in surveyed.unreached.items():
        listener.note(f"{host} is left out: {error.message}")
    items = []
    for one in found:
        item = Item.of(one)
        item.memory = surveyed.memory.get(one.key, one.memory)
        item.address = surveyed.address.get(one.key, "")
        item.destination = surveyed.placed.get(one.key, "")
        if why := surveyed.cannot.get(one.key):
            item.state, item.error = states.IMMOVABLE, why
        items.append(item)
    return items


async def _cordoned(
    agents: Agents, asked: Asked, items: list[Item], listener: Listener
) -> list[Item]:
    """Cordon the node; what has come onto it meanwhile is drained, too."""
    node = asked.drain.node
    await cordon(agents, asked.drain)
    now = asyncio.get_running_loop().time
    end = now() + _ARRIVALS
    while arriving := await _arriving(agents, node):
        if now() > end:
            raise NodeBusy(node=node, ids=", ".join(arriving))
        await asyncio.sleep(_LOOK)
    for _ in range(_LOOKS):
        found, _ = await _find(agents, asked)
        if _processes(found) == _processes(items):
            break
        items = await _surveyed(agents, asked, found, listener)
    return items


async def _arriving(agents: Agents, node: str) -> list[str]:
    """The migrations under way onto a host."""
    journals, _unread = await agents.ask(node, lambda agent: agent.journals())
    over = {"rolled-back", "migrated"}
    return [
        one["id"]
        for one in journals
        if one["role"] == DESTINATION and one["state"] in set(DESTINATION_TABLE.states) - over
    ]


def _processes(rows: list[Found] | list[Item]) -> set[tuple[int, int]]:
    return {(one.pid, one.born) for one in rows}


def _found(item: Item) -> Found:
    return Found(item.key, item.name, item.pid, item.born, item.comm, item.memory)
