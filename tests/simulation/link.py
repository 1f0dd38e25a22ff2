"""The simulated link: what the two agents say to each other, and what may become of it."""

from __future__ import annotations

from tests.simulation.hosts import ActionFailed
from tests.simulation.world import AGENTS, KEEPALIVE, World


class Link:
    """What the two agents say to each other, until it breaks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.opened = self.cut = False
        self.spoilt: list[str] = []  # what becomes of the next words: "lose", "double", "late"

    def open(self) -> None:
        world = self.world
        if all(role in world.agents and world.agents[role].running for role in world.hosts):
            if world.passes(AGENTS) and world.source.up and world.destination.up:
                self.opened = True
                self._wake()

    def send(self, to: str, word: str) -> None:
        """Raises `ActionFailed` where it is known to be broken."""
        world = self.world
        if self.cut:
            raise ActionFailed(f"say {word}")
        times, delay = 1, 0.001 + 0.05 * world.random()
        if self.spoilt:
            fault = self.spoilt.pop()
            world.cover["fault", fault, word] += 1
            world.note(f"link: {word} is spoilt: {fault}")
            times = {"lose": 0, "double": 2, "late": 1}[fault]
            delay += {"lose": 0.0, "double": 0.0, "late": 4.0 * world.random()}[fault]
        for _ in range(times):
            world.later(delay, lambda: self._deliver(to, word))
            delay += 0.2 * world.random()

    def _deliver(self, to: str, word: str) -> None:
        world = self.world
        agent = world.agents[to]
        if self.cut or not agent.alive:
            return
        if not world.passes(AGENTS):  # it waits in a buffer, for as long as the connection lasts
            world.later(world.cut_off[AGENTS] - world.now + 0.01, lambda: self._deliver(to, word))
            return
        agent.tell(word)

    def breaks(self, after: float) -> None:
        """One end is gone, and the other notices."""
        if self.opened and not self.cut:
            if not self.world.passes(AGENTS):
                after = KEEPALIVE
            self.world.later(after, self.broken)

    def silent(self) -> None:
        """Nothing has passed for a time."""
        if self.opened and not self.world.passes(AGENTS):
            self.broken()

    def broken(self) -> None:
        """Both ends know it."""
        if self.opened and not self.cut:
            self.world.note("link: broken")
            self.cut = True
            self._wake()

    def _wake(self) -> None:
        for agent in self.world.agents.values():
            agent.wake()
