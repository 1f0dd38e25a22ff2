"""The scripts of the lock: what they hold, and what can never get into them."""

from __future__ import annotations

import ipaddress
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.netlock.render import (
    LOCK_PASS_MARK,
    Connection,
    Listener,
    add_connections,
    lock,
    table_name,
    unlock,
)

ID = "20261123-134501-7f3a9c"
TABLE = "streamferry_20261123_134501_7f3a9c"
FOUR = Connection(4, "10.77.0.100", 6379, "10.77.0.13", 40000)
SIX = Connection(6, "fd77::100", 6379, "fd77::13", 40001)
LISTENERS = [
    Listener(4, "10.77.0.100", 6379),
    Listener(6, "fd77::100", 6380),
    Listener(4, None, 80),
    Listener(6, None, 81),
]


def elements(script: str, name: str) -> list[str]:
    """The elements that a script gives a set."""
    block = re.search(rf"set {name} {{(.*?)^}}", script, re.DOTALL | re.MULTILINE)
    assert block, f"no set {name}"
    found = re.search(r"elements = {(.*?)}", block[1], re.DOTALL)
    return [one.strip() for one in found[1].split(",")] if found else []


def rules(script: str, chain: str) -> list[str]:
    block = re.search(rf"chain {chain} {{(.*?)^}}", script, re.DOTALL | re.MULTILINE)
    assert block, f"no chain {chain}"
    return block[1].strip().splitlines()[1:]


@pytest.mark.parametrize("stage", ["hold_syn", "full"])
def test_sets_hold_connections_and_listeners(stage: str) -> None:
    script = lock(ID, [FOUR, SIX], LISTENERS, stage=stage)  # type: ignore[arg-type]
    assert elements(script, "connections4") == ["10.77.0.100 . 6379 . 10.77.0.13 . 40000"]
    assert elements(script, "connections6") == ["fd77::100 . 6379 . fd77::13 . 40001"]
    assert elements(script, "listeners4") == ["10.77.0.100 . 6379"]
    assert elements(script, "listeners6") == ["fd77::100 . 6380"]
    assert elements(script, "ports4") == ["80"]
    assert elements(script, "ports6") == ["81"]


def test_one_transaction_replaces_the_table() -> None:
    script = lock(ID, [], [], stage="full")
    begin = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    assert script.splitlines()[:3] == begin
    assert f'comment "streamferry {ID}"' in script
    assert script.count("{") == script.count("}")


def test_marked_packets_pass_first_in_every_chain() -> None:
    for stage, chains in (("hold_syn", 2), ("full", 3)):
        script = lock(ID, [FOUR], LISTENERS, stage=stage)  # type: ignore[arg-type]
        found = re.findall(r"chain (\w+)", script)
        assert len(found) == chains
        for chain in found:
            assert rules(script, chain)[0] == f"meta mark {LOCK_PASS_MARK:#x} accept"


def test_hold_syn_drops_nothing_but_syns() -> None:
    script = lock(ID, [FOUR], LISTENERS, stage="hold_syn")
    drops = [line for line in script.splitlines() if line.endswith("drop")]
    assert len(drops) == 4
    assert all("(fin | syn | rst | ack) == syn" in line for line in drops)
    assert "chain output" not in script
    assert "@connections" not in script


def test_full_never_compares_a_peers_port_with_a_listener() -> None:
    script = lock(ID, [FOUR], LISTENERS, stage="full")
    for chain, port in (("prerouting", "dport"), ("input", "dport"), ("output", "sport")):
        by_listener = [line for line in rules(script, chain) if "@connections" not in line]
        for line in by_listener[1:]:
            assert f"tcp {port}" in line
            assert line.count("port @") == 1
            assert re.search(r"@(listeners|ports)[46]", line)


def test_the_number_of_rules_does_not_depend_on_connections() -> None:
    many = [Connection(4, "10.0.0.1", 80, f"10.1.{i >> 8}.{i & 255}", 1000) for i in range(2000)]
    drops = lock(ID, many, LISTENERS, stage="full").count("drop")
    assert drops == lock(ID, [], [], stage="full").count("drop")
    assert len(elements(lock(ID, many, [], stage="full"), "connections4")) == 2000


def test_duplicates_are_given_once() -> None:
    """nft takes the same element twice in one list as an error, where it is told so."""
    long_form = Connection(6, "fd77:0:0::100", 6379, "FD77::13", 40001)
    script = lock(ID, [SIX, SIX, long_form], [LISTENERS[0]] * 2, stage="full")
    assert len(elements(script, "connections6")) == 1
    assert len(elements(script, "listeners4")) == 1


def test_add_connections() -> None:
    assert add_connections(ID, []) == ""
    assert add_connections(ID, [SIX]) == (
        f"add element inet {TABLE} connections6 {{ fd77::100 . 6379 . fd77::13 . 40001 }}\n"
    )
    assert len(add_connections(ID, [FOUR, SIX]).splitlines()) == 2


def test_unlock_needs_no_table() -> None:
    assert unlock(ID) == f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


@given(st.text())
def test_any_id_makes_a_safe_name_and_comment(migration_id: str) -> None:
    name = table_name(migration_id)
    allowed = set(string.ascii_letters + string.digits + "_")
    assert name.startswith("streamferry_") and set(name) <= allowed
    comments = re.findall(r'comment "(.*)"', lock(migration_id, [], [], stage="full"))
    assert len(comments) == 1
    assert '"' not in comments[0] and len(comments[0]) < 128
    assert lock(migration_id, [], [], stage="full").count("\n") == lock(
        ID, [], [], stage="full"
    ).count("\n")


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (4, "fd77::1"),
        (6, "10.0.0.1"),
        (4, "10.0.0.1; flush ruleset"),
        (4, "10.0.0.0/8"),
        (4, "localhost"),
        (4, ""),
        (6, "fe80::1%eth0"),
        (6, "fd77::1 }"),
        (5, "10.0.0.1"),
        (4, "10.0.0.1\0"),
    ],
)
def test_what_is_no_address_is_refused(family: int, address: str) -> None:
    local = Connection(family, address, 1, "10.0.0.1" if family == 4 else "::1", 1)
    remote = Connection(family, "10.0.0.1" if family == 4 else "::1", 1, address, 1)
    for bad in (local, remote):
        with pytest.raises(ValueError):
            lock(ID, [bad], [], stage="full")
        with pytest.raises(ValueError):
            add_connections(ID, [bad])
    with pytest.raises(ValueError):
        lock(ID, [], [Listener(family, address, 1)], stage="hold_syn")


@pytest.mark.parametrize("port", [0, -1, 65536, "80", "80 drop", None, 1.5])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError):
        lock(ID, [Connection(4, "10.0.0.1", port, "10.0.0.2", 1)], [], stage="full")
    with pytest.raises(ValueError):
        lock(ID, [Connection(4, "10.0.0.1", 1, "10.0.0.2", port)], [], stage="full")
    for address in (None, "10.0.0.1"):
        with pytest.raises(ValueError):
            lock(ID, [], [Listener(4, address, port)], stage="full")
    with pytest.raises(ValueError):
        lock(ID, [], [Listener(5, None, 80)], stage="full")


@given(
    st.lists(
        st.tuples(
            st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
            st.integers(1, 65535),
            st.integers(1, 65535),
        )
    )
)
def test_every_connection_is_in_its_set(
    ends: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, int]],
) -> None:
    connections = {
        Connection(one.version, str(one), here, str(one), there) for one, here, there in ends
    }
    script = lock(ID, connections, [], stage="full")
    found = elements(script, "connections4") + elements(script, "connections6")
    parsed = []
    for line in found:
        local, port, remote, peer_port = line.split(" . ")
        address = ipaddress.ip_address(local)
        parsed.append((address, int(port), ipaddress.ip_address(remote), int(peer_port)))
    assert sorted(parsed, key=str) == sorted(
        (
            (ipaddress.ip_address(one.local), one.local_port,
             ipaddress.ip_address(one.remote), one.remote_port)
            for one in connections
        ),
        key=str,
    )  # fmt: skip


def test_connections_sort_and_hash() -> None:
    assert sorted({SIX, FOUR, FOUR}) == [FOUR, SIX]
    assert FOUR.astuple() == (4, "10.77.0.100", 6379, "10.77.0.13", 40000)
    assert Connection(*FOUR.astuple()) == FOUR
