"""One schedule: a migration, what strikes it, and then, when all is well again, its recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agent.errors import AgentError
from orchestrator.migration.result import IN_DOUBT
from tests.simulation.faults import Fault, choose, strike
from tests.simulation.link import Link
from tests.simulation.orchestrators import Migration, Recovery
from tests.simulation.world import Violation, World

_LONG = 700.0  # seconds of the world's clock: whatever waits, waits less
_TRIES = 8  # of a recovery when all is well


@dataclass(slots=True)
class Failure:
    """A schedule in which something did not hold."""

    seed: int
    faults: list[Fault]
    what: str
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.what}", *(f"  {fault}" for fault in self.faults)]
        lines.append(f"  repeat it: python -m tests.simulation --seed {self.seed}")
        return "\n".join(lines)


Alter = Callable[[World], None]


def run(
    seed: int,
    faults: Iterable[Fault] | None = None,
    trace: list[str] | None = None,
    alter: Alter | None = None,
) -> World:
    """The world at the end of a schedule. Raises `Violation`."""
    world = World(seed, trace)
    world.link = Link(world)
    if alter is not None:
        alter(world)
    Migration(world)
    _disturbed(world, list(choose(seed) if faults is None else faults))
    _heal(world)
    _recovered(world)
    world.check_end()
    return world


def _disturbed(world: World, faults: list[Fault]) -> None:
    """The migration, until nobody is at work."""
    pending = faults[::-1]
    limit = _LONG
    step = world.step
    while pending:
        at = pending[-1].at
        while world.steps < at and world.outside and step():
            pass
        # When the orchestrator is through, the rest strikes what it left, soon one after another.
        if not world.outside and pending[-1].kind != "recover":
            at = world.steps
            while world.steps < at + 3 and step():
                pass
        strike(world, pending.pop())
    while world.outside and world.now < limit and step():
        pass


def _heal(world: World) -> None:
    """No more faults: the network passes, the disks have room, who is only slow goes on."""
    world.note("all is well again")
    world.cut_off.clear()
    world.link.spoilt.clear()
    for host in world.hosts.values():
        host.up, host.full, host.sync_fails, host.failing = True, False, False, 0
        host.keeps = host.forgetful = host.stranger = False
    _until(world, lambda: not world.outside, 400.0)
    for process in world.outside[:]:  # hangs for ever: the user ends it
        process.die()


def _recovered(world: World) -> None:
    """`migrate recover`, until it says that all is over."""
    for attempt in range(_TRIES):
        named = ""
        if not world.begun:
            with_journal = [host.role for host in world.hosts.values() if host.file]
            if not with_journal:
                break
            named = with_journal[0]
        one = Recovery(world, "recover", named)
        _until(world, lambda one=one: not one.alive, 600.0)  # type: ignore[misc]
        if attempt == 2:  # as `JournalBusy` says
            _end_by_hand(world)
        result = one.result
        if result is None and not world.begun:
            continue
        if not isinstance(result, AgentError) and result is not None:
            if result.outcome != IN_DOUBT and not result.unfinished:
                break
    else:
        raise Violation("it cannot be recovered")
    _until(world, lambda: not any(host.processes for host in world.hosts.values()), 200.0)
    _bury_hanging(world)


def _end_by_hand(world: World) -> None:
    for host in world.hosts.values():
        for process in list(host.processes):
            if process.paused or process is world.agents.get(host.role):
                state = history.state if (history := host.history()) else ""
                world.cover["end", "ended by hand", process.name, state] += 1
                world.note(f"{process.name}: ended by hand")
                process.die()


def _bury_hanging(world: World) -> None:
    """Of what hangs for ever, and holds nothing, nobody takes notice; it does no harm."""
    for host in world.hosts.values():
        for process in list(host.processes):
            if process.paused and host.holder is not process:
                process.die()
    _until(world, lambda: not any(host.processes for host in world.hosts.values()), 200.0)


def _until(world: World, over: Callable[[], bool], seconds: float) -> None:
    limit = world.now + seconds
    while not over() and world.now < limit and world.step():
        pass


def attempt(seed: int, faults: Sequence[Fault], alter: Alter | None = None) -> str | None:
    """What did not hold, if anything."""
    try:
        run(seed, faults, None, alter)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def minimised(seed: int, faults: list[Fault], alter: Alter | None = None) -> Failure:
    """The failure of a schedule, with no fault in it that it does not need."""
    what = attempt(seed, faults, alter)
    assert what is not None
    for fault in list(faults):
        fewer = [one for one in faults if one is not fault]
        if (told := attempt(seed, fewer, alter)) is not None:
            faults, what = fewer, told
    failure = Failure(seed, faults, what)
    try:
        run(seed, faults, failure.trace, alter)
    except Exception:
        pass
    return failure
