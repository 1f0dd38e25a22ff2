"""Schedules that aim at what chance seldom hits. Each seed gives one."""

from __future__ import annotations

import random

from agent.protocol import DESTINATION, SOURCE
from tests.simulation.faults import Fault, choose
from tests.simulation.world import AGENTS

_ENDS = (("break", "link", 0.0), ("cut", AGENTS, 150.0), ("kill", f"{SOURCE} agent", 0.0))


def early_recovery(seed: int) -> list[Fault]:
    """A recovery that begins before the migration is under way, and waits while that is
    interrupted about the hand-over. Now and then more strikes."""
    chance = random.Random(seed * 2 + 1)
    kind, where, amount = chance.choice(_ENDS)
    faults = [
        Fault(chance.randrange(3, 14), "recover", SOURCE),
        Fault(chance.randrange(50, 72), kind, where, amount),
    ]
    if chance.random() < 0.3:
        faults += choose(seed)
    return sorted(faults, key=lambda fault: fault.at)


def unreachable_source(seed: int) -> list[Fault]:
    """The link breaks about the hand-over, and a recovery then does not reach the source."""
    chance = random.Random(seed * 2 + 1)
    at = chance.randrange(50, 70)
    away = chance.choice((("cut", SOURCE, 150.0), ("hang", f"{SOURCE} agent", 130.0)))
    return [
        Fault(at, "break", "link"),
        Fault(at + chance.randrange(8), *away),
        Fault(at + chance.randrange(8, 20), "recover", "id"),
    ]


def another_destination(seed: int) -> list[Fault]:
    """In doubt, with the commit on disk, a recovery reaches another machine by its name."""
    chance = random.Random(seed * 2 + 1)
    at = chance.randrange(56, 68)
    return [
        Fault(at, "break", "link"),
        Fault(at, "stranger", DESTINATION, 300.0),
        Fault(at + 1, "kill", "orchestrator"),
        Fault(at + chance.randrange(2, 12), "recover", "id"),
    ]


def unsynced_commit(seed: int) -> list[Fault]:
    """The commit cannot be synced, and the agent is killed at about that moment."""
    chance = random.Random(seed * 2 + 1)
    return [
        Fault(chance.randrange(30, 56), "sync", DESTINATION),
        Fault(chance.randrange(56, 68), "kill", f"{DESTINATION} agent"),
    ]
