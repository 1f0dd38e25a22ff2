"""Decides which addresses move with a process, and between which devices. Pure."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from agent.errors import ProtocolError, shown
from agent.plan import Address
from agent.probe.facts import AddressFacts, HostFacts, ProcessFacts
from orchestrator.refusals import Refusal, refusal

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Placement:
    """The service addresses of one migration."""

    def __init__(
        self,
        source: str,
        destination: str,
        source_host: HostFacts,
        destination_host: HostFacts,
        process: ProcessFacts,
    ) -> None:
        self._names = {"source": source, "destination": destination}
        self._source, self._destination = source_host, destination_host
        self._process = process
        self.addresses: list[Address] = []
        self.refusals: list[Refusal] = []

    def place(self, extra: Iterable[str]) -> None:
        """Fill in `addresses` and `refusals`; `extra` are addresses the user named."""
        for address, why in service_addresses(self._process, extra).items():
            self._place(address, why)

    def _refuse(self, code: str, **fields: str | int) -> None:
        self.refusals.append(refusal(code, **fields, **self._names))

    def _place(self, address: str, why: str) -> None:
        parsed = parse(address)
        held = _find(self._source["addresses"], address)
        if held is None:
            self._refuse("address-absent", address=address, why=why)
            return
        common = {"address": address, "why": why}
        where: dict[str, str | int] = {"prefixlen": held["prefixlen"], "device": held["device"]}
        reason = self._immovable(parsed, held)
        if reason is not None:
            self._refuse("address-not-movable", **common, **where, reason=reason)
            return
        for other in self._process["others"]:
            if other["address"] == address:
                who = f"process {other['pid']} ({other['comm']})"
                who = who if other["pid"] else f"a socket of port {other['port']}"
                self._refuse("address-shared", **common, other=who)
        there = _find(self._destination["addresses"], address)
        if there is not None:
            at: dict[str, str | int] = {"prefixlen": there["prefixlen"], "device": there["device"]}
            self._refuse("address-taken", **common, **at)
            return
        device = self._destination_device(parsed, held["device"])
        if device is None:
            network = str(_network(held))
            self._refuse("address-no-device", address=address, network=network)
            return
        self.addresses.append(
            Address(
                address=address,
                prefixlen=held["prefixlen"],
                family=parsed.version,
                source_device=held["device"],
                destination_device=device,
            )
        )

    def _immovable(self, address: IPAddress, held: AddressFacts) -> str | None:
        """Why the address must stay on the source, if it must."""
        host, device = self._source, held["device"]
        if address.is_link_local:
            return f"it is the link-local address of its device, {device}"
        if held["address"] == host["reached"]:
            return f"{self._names['source']} was reached by it; it is the host's own"
        if held["dynamic"]:
            return "it was assigned for a time only (DHCP or SLAAC)"
        if held["address"] in host["named"]:
            return f"it is the host's own: /etc/hosts has it for {host['hostname']}"
        if held["has_secondaries"] and not held["promotes"]:
            return f"the other addresses of its network at {device} would go with it"
        peers = [
            one
            for one in host["addresses"]
            if one["device"] == device and one["address"] != held["address"]
        ]
        for gateway, through in host["gateways"]:
            if through == device and _depends(parse(gateway), held, peers):
                return f"the route by the gateway {gateway} depends on it"
        reached = _find(host["addresses"], host["reached"] or "")
        alone = not any(_network(one) == _network(held) for one in peers)
        if alone and reached is not None and reached["device"] == device:
            return f"it is the only address of its network at {device}, the host's own"
        return None

    def _destination_device(self, address: IPAddress, preferred: str) -> str | None:
        devices = [
            one["device"]
            for one in self._destination["addresses"]
            if not parse(one["address"]).is_link_local and address in _network(one)
        ]
        return preferred if preferred in devices else next(iter(devices), None)


def service_addresses(process: ProcessFacts, extra: Iterable[str]) -> dict[str, str]:
    """Address -> what it is for: the local addresses of the tree's TCP sockets, and `extra`.

    Loopback and wildcard addresses stay where they are. Raises `ProtocolError` where the facts
    have what is not an address.
    """
    found: dict[str, str] = {}
    for listener in process["listeners"]:
        end = endpoint(listener["address"], listener["port"])
        _note(found, listener["address"], f"listener {end}")
    for one in process["connections"]:
        _note(found, one.local, f"connection {connection(*one[1:5])}")
    for address in extra:
        _note(found, str(parse(address)), "--address")
    return found


def _note(found: dict[str, str], address: str, why: str) -> None:
    if address not in found:
        parsed = parse(address)
        if not parsed.is_loopback and not parsed.is_unspecified:
            found[address] = why


@functools.lru_cache(maxsize=1024)
def parse(address: str) -> IPAddress:
    """Raises `ProtocolError` where a host sent what is not an address."""
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise ProtocolError(detail=f"{shown(address)} is not an address") from None


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def connection(local: str, local_port: int, remote: str, remote_port: int) -> str:
    """ "10.0.0.1:80 - 10.0.0.2:4711" """
    if not remote:
        return endpoint(local, local_port)
    return f"{endpoint(local, local_port)} - {endpoint(remote, remote_port)}"


def _find(addresses: list[AddressFacts], address: str) -> AddressFacts | None:
    return next((one for one in addresses if one["address"] == address), None)


def _network(held: AddressFacts) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network((held["address"], held["prefixlen"]), strict=False)
    except ValueError:
        detail = f"{shown(held['address'])}/{held['prefixlen']} is not an address of a device"
        raise ProtocolError(detail=detail) from None


def _depends(gateway: IPAddress, held: AddressFacts, peers: list[AddressFacts]) -> bool:
    """Whether the gateway can be reached with `held`, and not without it."""
    return gateway in _network(held) and not any(gateway in _network(one) for one in peers)
