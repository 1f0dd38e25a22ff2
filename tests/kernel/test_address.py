"""Addresses that move between hosts, as their neighbours see it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent import address as address_module
from agent.address import AddressError, AddressMover, HeldAddress, inventory, route_device
from agent.kernel.rtnetlink import Netlink
from tests.support.netns import Host, wait_until
from tests.support.tcp import AF

SERVICE = {4: "10.99.0.100", 6: "fd99::100"}
PREFIX = {4: 24, 6: 64}


class Mover:
    """An `AddressMover` of one host."""

    def __init__(self, host: Host, address: str, prefixlen: int, device: str = "eth0") -> None:
        self._host = host
        self._mover = host.run(AddressMover, address, prefixlen, device)

    def add(self) -> None:
        self._host.run(self._mover.add)

    def remove(self) -> None:
        self._host.run(self._mover.remove)

    def announce(self) -> None:
        self._host.run(self._mover.announce)

    def close(self) -> None:
        self._mover.close()


@pytest.fixture
def mover() -> Iterator[Callable[..., Mover]]:
    made: list[Mover] = []

    def make(host: Host, address: str, prefixlen: int, device: str = "eth0") -> Mover:
        made.append(Mover(host, address, prefixlen, device))
        return made[-1]

    yield make
    for one in made:
        one.close()


def held(host: Host) -> dict[str, HeldAddress]:
    return {one["address"]: one for one in host.run(inventory) if one["device"] == "eth0"}


def shown(host: Host, address: str) -> dict[str, Any]:
    """What ip(8) says of an address at eth0, but for the lifetimes, which run."""
    for device in json.loads(host.ip("-json", "address", "show", "dev", "eth0")):
        for one in device["addr_info"]:
            if one["local"] == address:
                return {name: value for name, value in one.items() if "life_time" not in name}
    return {}


def neighbour(host: Host, address: str) -> str:
    """The link-layer address that a host has for another one; "" for none."""
    entries = json.loads(host.ip("-json", "neighbour", "show", "to", address, "dev", "eth0"))
    return str(entries[0].get("lladdr", "")) if entries else ""


def await_neighbour(host: Host, address: str, owner: Host) -> None:
    mac = owner.mac()
    wait_until(f"{host.name} has {owner.name}", lambda: neighbour(host, address) == mac)


class Mailbox:
    """A UDP socket of a host, to see who gets what is sent to an address."""

    def __init__(self, host: Host, family: int, port: int = 9000) -> None:
        self.socket = host.socket(AF[family], socket.SOCK_DGRAM)
        self.socket.bind(("::" if family == 6 else "0.0.0.0", port))
        self.socket.setblocking(False)

    def take(self) -> bytes:
        try:
            return self.socket.recv(100)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.socket.close()


def test_neighbours_follow_an_announced_address(
    trio: tuple[Host, Host, Host], mover: Callable[..., Mover], family: int
) -> None:
    source, destination, client = trio
    address = SERVICE[family]
    here = mover(source, address, PREFIX[family])
    there = mover(destination, address, PREFIX[family])
    boxes = {host.name: Mailbox(host, family) for host in (source, destination)}
    letters = Mailbox(client, family, 0)
    letters.socket.setblocking(True)
    way = [(here, there, source, destination), (there, here, destination, source)]
    here.add()
    for leaving, coming, giver, taker in way:
        letters.socket.sendto(b"before", (address, 9000))
        wait_until("it arrived at the giver", boxes[giver.name].take)
        assert neighbour(client, address) == giver.mac()
        leaving.remove()
        coming.add()
        coming.announce()
        await_neighbour(client, address, taker)
        letters.socket.sendto(b"after", (address, 9000))
        wait_until("it arrived at the taker", boxes[taker.name].take)
        assert boxes[giver.name].take() == b""
    for box in (*boxes.values(), letters):
        box.close()


def test_both_forms_of_arp_announcement_are_believed(
    trio: tuple[Host, Host, Host], mover: Callable[..., Mover]
) -> None:
    """Some hosts listen to requests, some to replies: Linux takes each by itself."""
    _, destination, client = trio
    address = SERVICE[4]
    for number in range(2):
        there = mover(destination, address, 24)
        frames = there._mover._frames
        assert len(frames) == 2
        there._mover._frames = [frames[number]]
        client.ip("neighbour", "replace", address, "lladdr", "02:00:00:00:00:01", "dev", "eth0",
                  "nud", "reachable")  # fmt: skip
        there.announce()
        await_neighbour(client, address, destination)


def test_all_calls_are_idempotent(
    pair: tuple[Host, Host], mover: Callable[..., Mover], family: int
) -> None:
    host = pair[0]
    one = mover(host, SERVICE[family], PREFIX[family])
    for _ in range(2):
        for _ in range(3):
            one.add()
        one.announce()
        assert SERVICE[family] in held(host)
        for _ in range(3):
            one.remove()
        assert SERVICE[family] not in held(host)
    one.close()
    one.close()


def test_an_added_address_is_ready_at_once(
    pair: tuple[Host, Host], mover: Callable[..., Mover], family: int
) -> None:
    """What is sent to it right after add() is delivered, and does not get lost on the link."""
    host = pair[0]
    one = mover(host, SERVICE[family], PREFIX[family])
    box = Mailbox(host, family)
    sender = Mailbox(host, family, 0)

    def add_and_send() -> None:
        one._mover.add()
        sender.socket.sendto(b"x", (SERVICE[family], 9000))

    for _ in range(50):
        host.run(add_and_send)
        assert box.take() == b"x"
        one.remove()
    box.close()
    sender.close()


def test_an_address_comes_back_as_it_was(
    pair: tuple[Host, Host], mover: Callable[..., Mover]
) -> None:
    """After a rollback nothing tells that it was away: label, broadcast, flags, lifetimes."""
    host = pair[0]
    host.ip("address", "add", "10.99.0.100/24", "broadcast", "10.99.0.255", "label", "eth0:service",
            "dev", "eth0", "noprefixroute")  # fmt: skip
    host.ip("address", "add", "10.99.7.1", "peer", "10.99.7.2/32", "dev", "eth0", "metric", "77")
    host.ip("address", "add", "fd99::100/64", "dev", "eth0", "nodad", "valid_lft", "1000",
            "preferred_lft", "500")  # fmt: skip
    for address, prefixlen in (("10.99.0.100", 24), ("10.99.7.1", 32), ("fd99::100", 64)):
        before = shown(host, address)
        assert before
        one = mover(host, address, prefixlen)
        one.remove()
        assert shown(host, address) == {}
        one.add()
        assert shown(host, address) == before
    dynamic = held(host)["fd99::100"]
    assert dynamic["dynamic"] and not held(host)["10.99.0.100"]["dynamic"]


def test_inventory_tells_primaries_from_secondaries(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    host.sysctl("net/ipv4/conf/all/promote_secondaries", 0)
    host.sysctl("net/ipv4/conf/eth0/promote_secondaries", 0)
    host.add_address("10.99.0.100")
    host.ip("address", "add", "10.99.0.101/32", "dev", "eth0")
    found = held(host)
    first = found[host.address4]
    assert (first["primary"], first["has_secondaries"]) == (True, True)
    assert (first["prefixlen"], first["family"], first["scope"]) == (24, 4, "global")
    second = found["10.99.0.100"]
    assert (second["primary"], second["has_secondaries"]) == (False, False)
    alone = found["10.99.0.101"]
    assert (alone["primary"], alone["has_secondaries"], alone["prefixlen"]) == (True, False, 32)
    six = found[host.address6]
    assert (six["primary"], six["family"], six["prefixlen"]) == (True, 6, 64)
    assert not first["promotes"]
    host.sysctl("net/ipv4/conf/eth0/promote_secondaries", 1)
    assert held(host)[host.address4]["promotes"] and not held(host)[host.address6]["promotes"]
    loopback = [one for one in host.run(inventory) if one["address"] == "127.0.0.1"]
    assert loopback[0]["device"] == "lo" and loopback[0]["scope"] == "host"


def test_the_device_that_reaches_an_address(pair: tuple[Host, Host]) -> None:
    host, other = pair
    for family in (4, 6):
        assert host.run(route_device, other.address(family)) == ("eth0", True)
        assert host.run(route_device, SERVICE[family]) == ("eth0", True)
        assert host.run(route_device, host.address(family)) is None  # its own
    assert host.run(route_device, "192.0.2.1") is None
    assert host.run(route_device, "2001:db8::1") is None
    host.ip("route", "add", "default", "via", other.address4)
    host.ip("-6", "route", "add", "default", "via", other.address6)
    assert host.run(route_device, "192.0.2.1") == ("eth0", False)
    assert host.run(route_device, "2001:db8::1") == ("eth0", False)
    host.ip("route", "add", "unreachable", "198.51.100.0/24")
    assert host.run(route_device, "198.51.100.7") is None


def test_inside_a_running_event_loop(pair: tuple[Host, Host], family: int) -> None:
    host = pair[0]

    async def move() -> float:
        mover = AddressMover(SERVICE[family], PREFIX[family], "eth0")
        mover.add()
        mover.announce()
        mover.remove()
        best = 1.0
        for _ in range(20):
            start = time.perf_counter()
            mover.add()
            mover.announce()
            best = min(best, time.perf_counter() - start)
            mover.remove()
        mover.close()
        assert inventory()
        return best

    assert host.run(lambda: asyncio.run(move())) < 0.002  # 10 to 30 us on an idle machine


def test_errors_name_the_address_and_the_device(
    pair: tuple[Host, Host], mover: Callable[..., Mover]
) -> None:
    host = pair[0]
    with pytest.raises(AddressError, match=r"10\.99\.0\.100.*nowhere0.*no such device"):
        mover(host, SERVICE[4], 24, "nowhere0")
    host.sysctl("net/ipv6/conf/eth0/disable_ipv6", 1)
    with pytest.raises(AddressError, match=r"fd99::100.*eth0: Permission denied"):
        mover(host, SERVICE[6], 64).add()
    host.ip("link", "set", "eth0", "down")
    with pytest.raises(AddressError, match="Network is down"):
        mover(host, SERVICE[4], 24).announce()


def test_a_device_without_ethernet_has_nothing_to_announce(
    pair: tuple[Host, Host], mover: Callable[..., Mover], family: int
) -> None:
    loopback = mover(pair[0], SERVICE[family], {4: 32, 6: 128}[family], "lo")
    loopback.add()
    assert loopback._mover._frames == []
    loopback.announce()
    loopback.remove()


def test_add_waits_until_packets_are_delivered(
    pair: tuple[Host, Host], mover: Callable[..., Mover], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel makes the route of an IPv6 address later, on a busy machine 0.1 s later."""
    one = mover(pair[0], SERVICE[6], 64)
    is_local, begin = Netlink.is_local, time.monotonic()

    def late(netlink: Netlink, query: bytes) -> bool:
        return time.monotonic() - begin > 0.2 and is_local(netlink, query)

    monkeypatch.setattr(Netlink, "is_local", late)
    one.add()
    assert time.monotonic() - begin > 0.2
    monkeypatch.setattr(Netlink, "is_local", lambda *_: False)
    monkeypatch.setattr(address_module, "_LOCAL_ROUTE_TIMEOUT", 0.05)
    with pytest.raises(AddressError, match="timed out"):
        one.add()
