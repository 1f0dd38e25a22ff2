"""The simulated world: two hosts, processes on them, a network, a clock; and what must hold.

Everything that happens is a step: a process goes on to its next yield, or something that was under
way arrives. Between any two steps a fault may strike, and after each the invariants are looked at.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

from agent.protocol import DESTINATION, SOURCE, TABLES, Found, Log
from orchestrator.recovery import carry, vouched
from tests.simulation.hosts import FROZEN, NONE, RUNS, STREAMS, Host

AGENTS, TO_SOURCE, TO_DESTINATION = "agents", SOURCE, DESTINATION  # the three connections
KEEPALIVE = 15.0  # seconds until a connection that nothing passes is taken for dead
Life = Generator[float, None, None]


class Violation(AssertionError):
    """An invariant does not hold."""


class Process:
    """Something that runs: on a host, or (`host` is None) at the orchestrator's.

    `life` yields what passes until its next step, in seconds; a negative number waits that long
    at most, for something to come into `inbox` or for a `wake`.
    """

    __slots__ = ("world", "host", "name", "alive", "token", "inbox", "paused", "late", "_life",
                 "listening")  # fmt: skip

    def __init__(self, world: World, name: str, host: Host | None = None) -> None:
        self.world, self.host, self.name = world, host, name
        self.alive, self.paused, self.late, self.listening = True, False, False, False
        self.token = 0
        self.inbox: list[Any] = []
        (world.outside if host is None else host.processes).append(self)
        self._life = self.life()
        world.schedule(0.01, self, 0)

    def life(self) -> Life:
        raise NotImplementedError

    def fire(self, token: int) -> None:
        if token != self.token or not self.alive:
            return
        if self.paused:
            self.late = True
            return
        self.listening = False
        self.token += 1
        try:
            wait = next(self._life)
        except StopIteration:
            self.die()
            return
        if not self.alive:
            return
        world = self.world
        if wait < 0:
            self.listening = True
            world.schedule(-wait, self, self.token)
        else:
            world.schedule(wait * (0.2 + 1.6 * world.random()), self, self.token)

    def tell(self, message: Any) -> None:
        """Something arrives."""
        self.inbox.append(message)
        self.wake()

    def wake(self) -> None:
        if self.listening and self.alive:
            self.listening = False
            self.token += 1
            self.world.schedule(0.001, self, self.token)

    def go_on(self) -> None:
        """After a pause."""
        self.paused = False
        if self.late:
            self.late = False
            self.world.schedule(0.0, self, self.token)

    def die(self, silently: bool = False) -> None:
        """Its end, by itself or by SIGKILL; `silently`: its host went with it."""
        if not self.alive:
            return
        self.alive = False
        host = self.host
        if host is None:
            self.world.outside.remove(self)
        else:
            host.processes.remove(self)
            if host.holder is self:
                host.holder = None
        self.buried(silently)

    def buried(self, silently: bool) -> None:
        """Who else notices."""


class Later:
    """A call that happens at its time."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def fire(self, _: int) -> None:
        self.call()


class World:
    """All there is. Every choice comes from one seed."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.random = random.Random(seed).random
        self.post_copy = bool(seed & 1)  # memory comes when the process runs already
        self.now = 0.0
        self.steps = 0
        self.changed = False
        # Three that a mutant puts others in the place of:
        self.erases = True  # a journal takes back a decision that could not be synced
        self.carry: Any = carry
        self.vouched: Any = vouched
        self.trace = trace
        self.cover: Counter[Any] = Counter()
        self._heap: list[tuple[float, int, Any, int]] = []
        self._count = 0
        self.hosts = {role: Host(self, role) for role in (SOURCE, DESTINATION)}
        self.source, self.destination = self.hosts[SOURCE], self.hosts[DESTINATION]
        self.outside: list[Process] = []  # at the orchestrator's
        self.cut_off: dict[str, float] = {}  # a connection: until when nothing passes
        self.link: Any = None
        self.agents: dict[str, Any] = {}
        self.begun = False  # the orchestrator has written down whom it was to migrate
        # What has ever been, whatever is left of it:
        self.committed = False  # the destination's decision was on disk
        self.handed_over = False  # the source's was
        self.lost = False  # the copy that was to go on went with its host
        self.to_be_told = False  # and that in a migration
        self.told: list[Any] = []  # what every recovery has come to
        self._awaited: dict[str, list[Callable[[], None]]] = {}

    # --- time

    def schedule(self, after: float, what: Any, token: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + after, self._count, what, token))

    def later(self, after: float, call: Callable[[], None]) -> None:
        self.schedule(after, Later(call))

    def step(self) -> bool:
        """Let the next thing happen; whether there was one."""
        if not self._heap:
            return False
        self.now, _, what, token = heapq.heappop(self._heap)
        what.fire(token)
        self.steps += 1
        if self.changed:
            self.changed = False
            self.check_invariants()
        return True

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:9.3f}  {text}")

    # --- moments

    def at(self, moment: str, call: Callable[[], None]) -> None:
        """Call this when that moment comes for the next time."""
        self._awaited.setdefault(moment, []).append(call)

    def reached(self, moment: str) -> None:
        """It has come."""
        for call in self._awaited.pop(moment, ()):
            call()

    # --- the network

    def passes(self, connection: str) -> bool:
        return self.cut_off.get(connection, 0.0) <= self.now

    def reaches(self, role: str) -> bool:
        """Whether the orchestrator reaches this host."""
        return self.hosts[role].up and self.passes(role)

    # --- what must hold

    def recorded(self, host: Host, state: str, log: Log) -> None:
        """A record is in a journal."""
        if self.trace is not None:
            self.note(f"{host.role}: journal {state or '(facts)'} ({log.value})")
        if log is Log.DECISION:
            if state in ("running", "committed") and host.role == DESTINATION:
                self.committed = True
                if host.copy == NONE:
                    pass  # it went with its host
                elif not host.missing:
                    self.lost = False  # a source that went down had already handed over
                elif self.source.copy == NONE:
                    self.lost = self.to_be_told = True
            elif state == "handed-over":
                self.handed_over = True
                self.reached("handed-over")

    def crashed(self, host: Host) -> None:
        """A host is about to lose all that it does not have on disk."""
        if host.role == SOURCE and self.committed and self.destination.missing:
            self.lost = self.to_be_told = True  # nothing else has the rest of its memory
            return
        if host.copy != NONE and (host.role == DESTINATION) == self.committed:
            self.lost = True
            history = host.history()  # before it is begun, or ended, it is a process like any other
            if history is not None and history.entries:
                state = TABLES[host.role].states[history.state]
                self.to_be_told = state.found is not Found.OVER

    def check_invariants(self) -> None:
        """What holds after every step, whatever has happened:

        1. At most one copy of the process is unfrozen.
        2. There is always a copy that can run: the source's, running or frozen, or the
           destination's once its commit is on disk. Excepted is only the copy that goes with its
           host: the source's before the commit, the destination's after it.
        3. The destination has a copy, and no lock, only when all its streams are restored; it lets
           go of a stream, or of the process, only when its commit is on disk.
        4. After the commit the source answers to nobody: it does not have the address without a
           lock, nor a copy without a lock, nor a copy that runs, nor streams that speak.
           Its copy ends only when the destination's has all of its memory.
        5. Never do both hosts have the address.
        6. A decision is on disk before it is acted on: the source gives the address up only when
           it has handed over, its copy ends only after the commit, and the destination's copy is
           let go only after it (3).
        7. A copy runs only when all its streams have left repair mode, in which each call on them
           fails. Excepted is one that could not be got out of it: the copy goes on all the same.
        """
        source, destination = self.source, self.destination
        here, there = source.copy, destination.copy
        if here == RUNS and there == RUNS:
            raise Violation("two copies run")
        if here == NONE and not self.lost and (there == NONE or not self.committed):
            raise Violation("no copy is left that may run")
        if there != NONE:
            if not destination.locked and destination.streams < STREAMS:
                raise Violation("the destination is not locked, and not all streams are restored")
            if not self.committed and (
                there == RUNS or destination.repair < destination.streams or not destination.locked
            ):
                raise Violation("the destination acts on a commit that is not on disk")
        if self.committed:
            if here == RUNS:
                raise Violation("the source's copy runs after the commit")
            if not source.locked and (source.address or here != NONE):
                raise Violation("the source answers after the commit")
            if here == FROZEN and source.repair < source.streams:
                raise Violation("the source's streams speak after the commit")
            if here == NONE and destination.missing and not self.lost:
                raise Violation("the source's copy ends while memory of it is missing")
        if source.address and destination.address:
            raise Violation("both hosts have the address")
        if not self.handed_over and not source.address and here != NONE:
            raise Violation("the source gave up the address before it had handed over")
        for host in (source, destination):
            if host.copy == RUNS and host.repair and not host.stuck:
                raise Violation(f"the {host.role}'s copy runs with streams in repair mode")

    def check_end(self) -> None:
        """When all faults are mended and every recovery is through, nothing is in between.

        One copy runs, on the host that has the address; where it went with its host there is none,
        and that was said. No lock is left, no process of ours, no journal.
        """
        source, destination = self.source, self.destination
        left = [f"{host.role} is locked" for host in (source, destination) if host.locked]
        left += [f"{one.name} is left" for host in (source, destination) for one in host.processes]
        left += [f"{host.role} has a journal" for host in (source, destination) if host.file]
        if self.lost:
            if source.copy != NONE or destination.copy != NONE:
                left.append("a copy is left of one that is lost")
            if self.to_be_told and not any(one.lost for one in self.told):
                left.append("nobody was told that it is lost")
        else:
            home, other = (destination, source) if self.committed else (source, destination)
            if home.copy != RUNS or other.copy != NONE:
                left.append(f"{home.role}: {home.copy}, {other.role}: {other.copy}")
            if not home.address or other.address:
                left.append("the address is not where the process is")
            if home.repair:
                left.append("streams are silent")
        if left:
            raise Violation("at the end: " + "; ".join(left))
