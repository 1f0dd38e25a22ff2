"""Where workloads are placed: whatever the case, no host is asked for more than it has."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.draining.placement import MARGIN, Load, Placed, Room, place

MIB = 1 << 20
HOSTS = ("dst", "spare", "third")

loads = st.lists(
    st.builds(
        Load,
        key=st.uuids().map(str),
        memory=st.integers(0, 3000).map(lambda n: n * MIB),
        pids=st.frozensets(st.integers(1, 12), max_size=3),
        ports=st.frozensets(st.sampled_from(["tcp a:1", "tcp a:2", "udp b:3"]), max_size=2),
        against=st.dictionaries(st.sampled_from(HOSTS), st.just("its files differ"), max_size=3),
        to=st.lists(st.sampled_from(HOSTS), unique=True, max_size=3).map(tuple),
    ),
    max_size=12,
    unique_by=lambda one: one.key,
)
rooms = st.lists(
    st.builds(
        Room,
        name=st.sampled_from(HOSTS),
        memory=st.integers(0, 20000).map(lambda n: n * MIB),
        images_in_memory=st.booleans(),
        workloads=st.none() | st.integers(0, 5),
        memory_limit=st.none() | st.integers(0, 4000).map(lambda n: n * MIB),
    ),
    max_size=3,
    unique_by=lambda one: one.name,
)


def used(placed: Placed, loads: list[Load], host: str) -> list[Load]:
    return [one for one in loads if placed.where.get(one.key) == host]


@given(loads, rooms, st.integers(1, 4), st.booleans())
def test_no_host_is_asked_for_more_than_it_has(
    loads: list[Load], rooms: list[Room], parallel: int, pack: bool
) -> None:
    placed = place(loads, rooms, parallel, pack)
    assert set(placed.where) | set(placed.why_not) == {one.key for one in loads}
    assert not set(placed.where) & set(placed.why_not)
    for room in rooms:
        here = used(placed, loads, room.name)
        sizes = sorted((one.memory for one in here), reverse=True)
        moving = sum(sizes[:parallel]) if room.images_in_memory else 0
        assert not here or sum(sizes) + moving + MARGIN <= room.memory
        assert room.workloads is None or len(here) <= room.workloads
        assert room.memory_limit is None or sum(sizes) <= room.memory_limit
        for kind in ("pids", "ports"):
            owned = Counter(thing for one in here for thing in getattr(one, kind))
            assert not owned or max(owned.values()) == 1
        for one in here:
            assert room.name not in one.against and (not one.to or room.name in one.to)
    for reasons in placed.why_not.values():  # a reason for each host, in words
        assert set(reasons) == {room.name for room in rooms} and all(reasons.values())
    assert place(loads, rooms, parallel, pack) == placed


@given(loads, st.integers(1, 4), st.booleans())
def test_what_fits_alone_on_a_host_without_end_is_placed(
    loads: list[Load], parallel: int, pack: bool
) -> None:
    loads = [Load(one.key, one.memory) for one in loads]
    placed = place(loads, [Room("dst", 1 << 50)], parallel, pack)
    assert set(placed.where.values()) <= {"dst"} and not placed.why_not


@given(st.integers(0, 20), st.integers(1, 3))
def test_equal_ones_are_spread_evenly(count: int, hosts: int) -> None:
    loads = [Load(f"w{number}", 10 * MIB) for number in range(count)]
    placed = place(loads, [Room(name, 1 << 40) for name in HOSTS[:hosts]])
    counts = [len(used(placed, loads, name)) for name in HOSTS[:hosts]]
    assert sum(counts) == count and max(counts) - min(counts) <= 1
    packed = place(loads, [Room(name, 1 << 40) for name in HOSTS[:hosts]], pack=True)
    assert set(packed.where.values()) <= {"dst"}


def test_those_with_the_fewest_places_choose_first() -> None:
    loads = [Load("free", 10 * MIB), Load("bound", 10 * MIB, against={"spare": "no such file"})]
    rooms = [Room("dst", 1 << 40, workloads=1), Room("spare", 1 << 40)]
    assert place(loads, rooms).where == {"bound": "dst", "free": "spare"}


def test_the_words() -> None:
    taken = Load("a", 10 * MIB, frozenset({7}), frozenset({"tcp :80"}))
    cases = {
        "it takes 0 workloads at most": (taken, Room("dst", 1 << 40, workloads=0)),
        "it takes 5 MiB at most, and 10 MiB would be brought":
            (taken, Room("dst", 1 << 40, memory_limit=5 * MIB)),
        "it has 70 MiB of memory left, and 84 MiB are needed with what else goes there":
            (taken, Room("dst", 70 * MIB)),
        "it may not go there": (Load("a", 0, to=("spare",)), Room("dst", 1 << 40)),
    }  # fmt: skip
    for words, (load, room) in cases.items():
        assert place([load], [room]).why_not == {"a": {"dst": words}}
    both = [taken, Load("b", 0, frozenset({7, 8})), Load("c", 0, ports=frozenset({"tcp :80"}))]
    placed = place(both, [Room("dst", 1 << 40)])
    assert placed.why_not == {
        "b": {"dst": "a, which goes there, has the PID 7"},
        "c": {"dst": "a, which goes there, has tcp :80"},
    }
