"""Which workload goes where: by what stands against it, free memory, room, and spread. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MARGIN = 64 << 20  # bytes that a host keeps beside what it takes in
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """A workload as it is placed."""

    key: str
    memory: int  # bytes
    pids: frozenset[int] = frozenset()  # PIDs and thread IDs, which must be free
    ports: frozenset[str] = frozenset()  # "tcp 10.0.0.1:80"; no two of one host may have one
    against: Mapping[str, str] = field(default_factory=dict)  # host -> why it cannot go there
    to: tuple[str, ...] = ()  # where it may go; anywhere unless given


@dataclass(frozen=True, slots=True)
class Room:
    """A destination."""

    name: str
    memory: int  # bytes that are available
    images_in_memory: bool = True  # while it moves, a workload's memory is there twice
    workloads: int | None = None  # how many it takes at most
    memory_limit: int | None = None  # bytes of all that is brought


@dataclass(frozen=True, slots=True)
class Placed:
    """What came of it: each workload is in one of the two."""

    where: dict[str, str]
    why_not: dict[str, dict[str, str]]  # key -> host -> reason, in words


def place(loads: list[Load], rooms: list[Room], parallel: int = 1, pack: bool = False) -> Placed:
    """Place what can be: those with the fewest places first, the largest of them first.

    Spread: where the fewest have gone so far, then the most memory is left. `pack`: the first host
    that has room. `parallel`: how many are on the move at once.
    """
    taken = {room.name: _Taken(room, parallel) for room in rooms}
    where: dict[str, str] = {}
    why_not: dict[str, dict[str, str]] = {}
    order = {load.key: place for place, load in enumerate(loads)}

    def rank(load: Load) -> tuple[int, int, int]:
        free = sum(not _against(load, room.name) for room in rooms)
        return free, -load.memory, order[load.key]

    for load in sorted(loads, key=rank):
        reasons = {
            room.name: _against(load, room.name) or taken[room.name].why_not(load) for room in rooms
        }
        able = [taken[room.name] for room in rooms if not reasons[room.name]]
        if not able:
            why_not[load.key] = reasons
            continue
        best = able[0] if pack else min(able, key=lambda one: (len(one.loads), -one.left))
        best.loads.append(load)
        where[load.key] = best.room.name
    return Placed(where, why_not)


def _against(load: Load, host: str) -> str:
    if load.to and host not in load.to:
        return "it may not go there"
    return load.against.get(host, "")


class _Taken:
    """A destination, and what has been placed there."""

    def __init__(self, room: Room, parallel: int) -> None:
        self.room, self._parallel = room, parallel
        self.loads: list[Load] = []

    @property
    def left(self) -> int:
        """Bytes that are left once all is there."""
        return self.room.memory - self._needed(self.loads)

    def _needed(self, loads: list[Load]) -> int:
        sizes = sorted((one.memory for one in loads), reverse=True)
        twice = sum(sizes[: self._parallel]) if self.room.images_in_memory else 0
        return sum(sizes) + twice + MARGIN

    def why_not(self, load: Load) -> str:
        """Why it has no room for one more; "" where it has."""
        room, after = self.room, [*self.loads, load]
        if room.workloads is not None and len(after) > room.workloads:
            return f"it takes {room.workloads} workloads at most"
        brought = sum(one.memory for one in after)
        if room.memory_limit is not None and brought > room.memory_limit:
            return (
                f"it takes {room.memory_limit // _MIB} MiB at most, "
                f"and {brought // _MIB} MiB would be brought"
            )
        if (needed := self._needed(after)) > room.memory:
            return (
                f"it has {room.memory // _MIB} MiB of memory left, and {-(-needed // _MIB)} MiB "
                "are needed with what else goes there"
            )
        for other in self.loads:
            if pids := load.pids & other.pids:
                return f"{other.key}, which goes there, has the PID {min(pids)}"
            if ports := load.ports & other.ports:
                return f"{other.key}, which goes there, has {min(ports)}"
        return ""
