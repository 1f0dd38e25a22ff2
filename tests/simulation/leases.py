"""The orchestrator's lease on the simulated agents: `agent.lease.Lease`, beat by beat.

Beats are looked at only while some may be missed: from a cut, or from when the orchestrator hangs,
until one is heard again. An agent whose lease has ended takes no more calls, and its orchestrator
learns of that only by the agent's end.
"""

from __future__ import annotations

from agent.lease import BEAT, Lease
from tests.simulation.agents import Agent
from tests.simulation.world import Process, World


def watch(world: World, agent: Agent) -> None:
    """From now on beats may be missed."""
    if agent.watched:
        return
    agent.watched = True
    lease = Lease()
    lease.begin()
    orchestrator: Process = agent.client

    def beat() -> None:
        if not agent.alive or agent.orchestrator is None:
            return
        if world.passes(agent.role) and not orchestrator.paused:
            agent.watched = False
            return
        if not agent.paused and lease.missed():
            end(world, agent)
            return
        world.later(BEAT, beat)

    world.later(BEAT, beat)


def end(world: World, agent: Agent) -> None:
    """It has ended."""
    state = agent.machine.state if agent.machine is not None else "idle"
    world.cover["lease", "ends", agent.role, state] += 1
    world.note(f"{agent.name}: its lease ends in {state}")
    agent.abandoned()


def watch_all(world: World) -> None:
    for agent in world.agents.values():
        if agent.orchestrator is not None:
            watch(world, agent)
