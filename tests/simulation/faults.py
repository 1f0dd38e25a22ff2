"""What may go wrong in a schedule, chosen from its seed, and how each strikes the world."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from agent.protocol import DESTINATION, SOURCE
from tests.simulation.leases import end, watch, watch_all
from tests.simulation.orchestrators import Migration, Recovery
from tests.simulation.world import AGENTS, KEEPALIVE, Process, World

FOREVER = math.inf
STEPS = 90  # faults strike within so many steps; an undisturbed migration takes about 75
_HOSTS = (SOURCE, DESTINATION)
_PAUSES = (2.0, 12.0, 40.0, 130.0, FOREVER)


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them; strikes after `at` steps of the world."""

    at: int
    kind: str
    where: str
    amount: float = 0.0  # of what, depends on the kind

    def __str__(self) -> str:
        amount = f" {self.amount:g}" if self.amount else ""
        return f"step {self.at}: {self.kind} {self.where}{amount}"


def choose(seed: int) -> list[Fault]:
    """The faults of one schedule, in their order."""
    chance = random.Random(seed * 2 + 1)
    count = chance.choices((0, 1, 2, 3, 4, 5, 7), (2, 16, 30, 24, 14, 9, 5))[0]
    # Half of all schedules are cut short by many things at once.
    dense = chance.random() < 0.5
    middle = chance.randrange(STEPS)
    found = []
    for _ in range(count):
        at = middle + chance.randrange(-4, 9) if dense else chance.randrange(STEPS)
        kind = chance.choices(_KINDS, _WEIGHTS)[0]
        places, amounts = _MENU[kind][1:3]
        found.append(Fault(max(at, 0), kind, chance.choice(places), chance.choice(amounts)))
    return sorted(found, key=lambda fault: fault.at)


def strike(world: World, fault: Fault) -> None:
    """Let it happen; nothing happens where there is nothing that it could hit."""
    if _MENU[fault.kind][3](world, fault):
        world.cover["fault", fault.kind, fault.where] += 1
        world.note(f"*** {fault}")
        if world.changed:
            world.changed = False
            world.check_invariants()


def _found(world: World, where: str) -> Process | None:
    """The process of that name, the last where there are several."""
    if where in _OUTSIDE:
        found = [one for one in world.outside if isinstance(one, Migration) == (where != "recover")]
        return found[-1] if found else None
    role, _, kind = where.partition(" ")
    for one in reversed(world.hosts[role].processes):
        if one.name == where or (kind == "recovery" and one.name.endswith("forgets")):
            return one
    return None


def _kill(world: World, fault: Fault) -> bool:
    process = _found(world, fault.where)
    if process is not None:
        process.die()
    return process is not None


def _hang(world: World, fault: Fault) -> bool:
    process = _found(world, fault.where)
    if process is None or process.paused:
        return False
    process.paused = True
    if isinstance(process, Migration):
        watch_all(world)
    if fault.amount < FOREVER:
        world.later(fault.amount, process.go_on)
    return True


def _resolve(world: World, fault: Fault) -> bool:
    """The link breaks after the hand-over, and the source's agent goes away while it is resolved:
    killed, or hanging for `amount` seconds."""
    if world.handed_over:
        return False

    def begin() -> None:
        world.later(0.5 * world.random(), world.link.broken)

    def resolve() -> None:
        agent = world.agents[SOURCE]

        def strikes() -> None:
            if agent.alive and not agent.paused:
                state = agent.machine.state
                world.cover["fault", "in resolve", fault.where, state] += 1
                world.note(f"{agent.name}: {fault.where} in resolve, {state}")
                (_kill if fault.where == "kill" else _hang)(
                    world, Fault(fault.at, fault.where, agent.name, fault.amount)
                )

        world.later(0.3 * world.random(), strikes)

    world.at("handed-over", begin)
    world.at("resolve", resolve)
    return True


def _for_a_time(world: World, fault: Fault, what: str) -> bool:
    """Something is so with a host for `amount` seconds."""
    host = world.hosts[fault.where]
    setattr(host, what, True)
    world.later(fault.amount, lambda: setattr(host, what, False))
    return True


def _full(world: World, fault: Fault) -> bool:
    return _for_a_time(world, fault, "full")


def _keep(world: World, fault: Fault) -> bool:
    """The file system is read-only: no record is taken, and no journal can be removed."""
    return _for_a_time(world, fault, "keeps") and _full(world, fault)


def _forgetful(world: World, fault: Fault) -> bool:
    """Removals are not synced: what was removed is back after a crash."""
    return _for_a_time(world, fault, "forgetful")


def _stranger(world: World, fault: Fault) -> bool:
    """Whoever connects anew to that host's name comes to another machine, which knows nothing."""
    return _for_a_time(world, fault, "stranger")


def _sync(world: World, fault: Fault) -> bool:
    world.hosts[fault.where].sync_fails = True
    return True


def _fail(world: World, fault: Fault) -> bool:
    world.hosts[fault.where].failing = int(fault.amount)
    return True


def _reboot(world: World, fault: Fault) -> bool:
    for role in _HOSTS if fault.where == "both" else (fault.where,):
        host = world.hosts[role]
        if not host.up:
            return False
        world.crashed(host)
        host.up = False
        for process in list(host.processes):
            process.die(silently=True)
        host.restart(fault.amount)

        def back(host=host) -> None:  # type: ignore[no-untyped-def]
            host.up = True

        world.later(5.0 + 60.0 * world.random(), back)
    world.changed = True
    return True


def _cut(world: World, fault: Fault) -> bool:
    for connection in (AGENTS, *_HOSTS) if fault.where == "all" else (fault.where,):
        world.cut_off[connection] = max(
            world.cut_off.get(connection, 0.0), world.now + fault.amount
        )
        if connection == AGENTS:
            world.later(KEEPALIVE, world.link.silent)
        else:

            def silent(role: str = connection) -> None:
                if not world.passes(role):
                    for one in world.outside:
                        if isinstance(one, Migration):
                            one.cut(role)

            world.later(KEEPALIVE, silent)
            if (agent := world.agents.get(connection)) is not None and agent.orchestrator:
                watch(world, agent)
    return True


def _break(world: World, fault: Fault) -> bool:
    world.link.broken()
    return True


def _spoil(world: World, fault: Fault) -> bool:
    world.link.spoilt.append(fault.where)
    return True


def _recover(world: World, fault: Fault) -> bool:
    Recovery(world, "recover", "" if fault.where == "id" else fault.where)
    return True


def _cancel(world: World, fault: Fault) -> bool:
    agent = world.agents.get(SOURCE)
    if agent is None or not agent.alive or not agent.running or not agent.orchestrator:
        return False
    if agent.machine.committed:
        return False
    agent.cancelled = True
    agent.wake()
    return True


def _lease(world: World, fault: Fault) -> bool:
    """It ends while the orchestrator still takes the agent for its own."""
    agent = world.agents.get(fault.where)
    if agent is None or not agent.alive or agent.paused or not agent.orchestrator:
        return False
    end(world, agent)
    return True


_Places = tuple[str, ...]
_EVERYONE = tuple(f"{role} {kind}" for role in _HOSTS for kind in ("agent", "guardian", "recovery"))
_OUTSIDE = ("orchestrator", "recover")
_AGENTS = tuple(f"{role} agent" for role in _HOSTS)

# Kind: how often, where, how much, what it does.
_MENU: dict[str, tuple[int, _Places, tuple[float, ...], Callable[[World, Fault], bool]]] = {
    "kill": (20, (*_AGENTS * 3, *_EVERYONE, *_OUTSIDE), (0.0,), _kill),
    "hang": (14, (*_AGENTS * 3, *_EVERYONE, *_OUTSIDE), _PAUSES, _hang),
    "reboot": (12, (*_HOSTS, *_HOSTS, "both"), (0.0, 0.3, 0.6, 1.0), _reboot),
    "cut": (12, (AGENTS, *_HOSTS, "all"), (1.0, 8.0, 40.0, 150.0), _cut),
    "resolve": (4, ("kill", "hang"), _PAUSES, _resolve),
    "break": (6, ("link",), (0.0,), _break),
    "spoil": (6, ("lose", "double", "late"), (0.0,), _spoil),
    "full": (6, _HOSTS, (1.0, 20.0, 300.0), _full),
    "read-only": (6, _HOSTS, (1.0, 20.0, 300.0), _keep),
    "forgetful": (3, _HOSTS, (20.0, 300.0), _forgetful),
    "stranger": (4, _HOSTS, (20.0, 300.0), _stranger),
    "sync": (6, _HOSTS, (0.0,), _sync),
    "fail": (6, _HOSTS, (1.0, 1.0, 3.0), _fail),
    "recover": (14, ("id", *_HOSTS), (0.0,), _recover),
    "lease": (4, _HOSTS, (0.0,), _lease),
    "cancel": (3, (SOURCE,), (0.0,), _cancel),
}
_KINDS = tuple(_MENU)
_WEIGHTS = tuple(row[0] for row in _MENU.values())
EVERY_FAULT = {(kind, place) for kind, row in _MENU.items() for place in row[1]}
