"""The plan crosses the wire unchanged, and nothing malformed is taken for one."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.plan import (
    ID_PATTERN,
    MAX_LISTENERS,
    MAX_ROUNDS,
    PRE_COPY,
    Address,
    Listener,
    Plan,
    new_id,
)

PLAN = Plan(
    id="20261123-134501-7f3a9c",
    pid=5000,
    tree=(5000, 5001),
    addresses=(
        Address("10.77.0.100", 24, 4, "eth0", "eth1"),
        Address("fd77::100", 64, 6, "eth0", "eth1.20"),
    ),
    listeners=(Listener("0.0.0.0", 6379, 4), Listener("::", 6380, 6, v6only=True)),
    memory=1 << 30,
    shell_job=True,
    max_blackout=2.5,
    memory_mode=PRE_COPY,
    max_rounds=3,
    may_follow=True,
    bandwidth=125_000_000,
    replay=False,
    boundary=False,
    missing_options=True,
    sync_dirs=("/srv/data",),
    sync_files=("/opt/app/bin/app",),
    sync_places=("/var/lib/app",),
    link_hosts=("10.77.0.12",),
    faults=("ship@source=kill",),
)


def sent(wire: dict[str, Any]) -> Any:
    return msgpack.unpackb(msgpack.packb(wire))


def test_round_trip() -> None:
    assert Plan.from_wire(sent(PLAN.to_wire())) == PLAN


def test_defaults_round_trip() -> None:
    plan = Plan(new_id(), 1, (1,), (), (), 0, False)
    assert Plan.from_wire(sent(plan.to_wire())) == plan


def test_new_id() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(ID_PATTERN.fullmatch(one) for one in ids)


def test_wildcard() -> None:
    assert [one.wildcard for one in PLAN.listeners] == [True, True]
    assert not Listener("10.77.0.100", 80, 4).wildcard


BAD: dict[str, list[Any]] = {
    "id": ["", "x", "20261123-134501-7F3A9C", "../../etc", "20261123-134501-7f3a9c\n", 7, None],
    "pid": [0, -1, 1 << 23, "5000", True, None, 5001],
    "tree": [[], [5001], [5000, 5000], [5000, 0], [5000, "1"], 5000, None, {5000: 1}],
    "addresses": [None, [[]], ["10.77.0.100"], "x"],
    "listeners": [None, [None], [{}], [{"address": "::"}]],
    "memory": [-1, 1 << 50, 1.5, "1", True],
    "shell_job": [0, 1, "yes", None],
    "images_dir": ["", "run", "/", "/run/../etc", "/run/./x", "/run/\0x", "/" + "x" * 4000, 5],
    "max_blackout": [0, -1, 1e9, float("nan"), float("inf"), "10", True, None],
    "memory_mode": ["", "auto", "Stop", "pre_copy", "pre-copy\n", b"stop", None, 1, ["stop"]],
    "max_rounds": [-1, MAX_ROUNDS + 1, 1.0, "8", True, None],
    "may_follow": [0, "", None],
    "bandwidth": [-1, 1, 99_999, 10**12 + 1, 1e6, "1M", True, None],
    "replay": [1, None],
    "boundary": ["", 0],
    "sync_dirs": [None, ["/"], ["/proc"], ["srv"], ["/srv/.."], ["/srv/"], ["/etc"], ["/srv\0"]],
    "sync_files": [None, ["/file"], ["/proc/1/mem"], ["/srv/../x"], ["/srv/x"] * 5000],
    "sync_places": [None, [5], ["/run/streamferry"], "/srv"],
    "link_hosts": [None, [""], [5], ["x" * 300], ["a\nb"], "10.0.0.1", ["h"] * 100],
    "faults": [None, [None], ["\x1b[2J"]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_bad_field(name: str, value: Any) -> None:
    wire = PLAN.to_wire()
    wire[name] = value
    with pytest.raises(ProtocolError, match="in the plan"):
        Plan.from_wire(wire)


BAD_ADDRESS: dict[str, list[Any]] = {
    "address": ["", "10.77.0", "fd77::1", "10.77.0.100/24", "fe80::1%eth0", 7],
    "prefixlen": [-1, 33, "24", None],
    "family": [6, 5, 2, "4", None],
    "source_device": ["", "a b", "a/b", "x" * 16, "eth0\n", 0],
    "destination_device": ["", "..:", None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_ADDRESS.items() for value in values]
)
def test_bad_address(name: str, value: Any) -> None:
    wire = PLAN.to_wire()
    wire["addresses"][0][name] = value
    with pytest.raises(ProtocolError, match="addresses"):
        Plan.from_wire(wire)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 0), ("port", 65536), ("port", "80"), ("address", "*"), ("family", 6), ("v6only", 1)],
)
def test_bad_listener(name: str, value: Any) -> None:
    wire = PLAN.to_wire()
    wire["listeners"][0][name] = value
    with pytest.raises(ProtocolError, match="listeners"):
        Plan.from_wire(wire)


def test_address_in_a_long_form_or_twice() -> None:
    wire = PLAN.to_wire()
    wire["addresses"][1]["address"] = "fd77:0::100"
    with pytest.raises(ProtocolError, match="shortest"):
        Plan.from_wire(wire)
    wire = PLAN.to_wire()
    wire["addresses"].append(wire["addresses"][0])
    with pytest.raises(ProtocolError, match="twice"):
        Plan.from_wire(wire)


def test_too_many() -> None:
    wire = PLAN.to_wire()
    wire["listeners"] = wire["listeners"] * MAX_LISTENERS
    with pytest.raises(ProtocolError, match="limit"):
        Plan.from_wire(wire)


@pytest.mark.parametrize("wire", [None, [], 5, "plan", {}, {1: 2}])
def test_not_a_plan(wire: object) -> None:
    with pytest.raises(ProtocolError):
        Plan.from_wire(wire)


def test_missing_and_unknown_fields() -> None:
    for name in PLAN.to_wire():
        wire = PLAN.to_wire()
        del wire[name]
        with pytest.raises(ProtocolError, match=name):
            Plan.from_wire(wire)
    with pytest.raises(ProtocolError, match="extra"):
        Plan.from_wire({**PLAN.to_wire(), "extra": 1})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(PLAN.to_wire())), ANYTHING)
def test_any_value_is_refused_or_fits(name: str, value: Any) -> None:
    wire = copy.deepcopy(PLAN.to_wire())
    wire[name] = value
    try:
        plan = Plan.from_wire(wire)
    except ProtocolError:
        return
    assert Plan.from_wire(sent(plan.to_wire())) == plan
