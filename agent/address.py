"""Move an address: add, remove and announce it, fast enough for the blackout.

Sockets and messages are made ahead, in the constructor; what is left is one system call or two.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from agent.errors import AgentError
from agent.kernel import rtnetlink

_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
# include/uapi/linux/if_addr.h
_IFA_F_SECONDARY = 0x01
_IFA_F_NODAD = 0x02
_IFA_F_PERMANENT = 0x80
# What the kernel says of an address, beside what it was told: SECONDARY, OPTIMISTIC, DADFAILED,
# DEPRECATED, TENTATIVE, PERMANENT.
_IFA_F_STATE = 0x01 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80
_IDENTITY = ("IFA_LOCAL", "IFA_ADDRESS")
_KEPT_ATTRIBUTES = (*_IDENTITY, "IFA_BROADCAST", "IFA_LABEL", "IFA_RT_PRIORITY")
# include/uapi/linux/if_arp.h, if_ether.h
_ARPHRD_ETHER = 1
_ETH_P_IP, _ETH_P_IPV6, _ETH_P_ARP = 0x0800, 0x86DD, 0x0806
_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_FAMILY = {int(value): key for key, value in _AF.items()}
_LOCAL_ROUTE_TIMEOUT = 2.0  # seconds; 3 ms as a rule, and 90 on a busy machine


class AddressError(AgentError):
    code = "address"
    template = "the address {address} cannot be moved at {device}: {detail}"
    hint_template = "Check `ip address` and `ip link` on that host."


class HeldAddress(TypedDict):
    """An address that a host has."""

    address: str  # textual, shortest form
    prefixlen: int
    device: str
    family: int  # 4 or 6
    primary: bool  # false: IPv4, and another address of its subnet was there before
    has_secondaries: bool  # removing it removes these, too, unless the device promotes
    promotes: bool  # sysctl promote_secondaries
    scope: str  # "global", "link", "host" ...
    dynamic: bool  # has a lifetime (DHCP, SLAAC)


class AddressMover:
    """One address at one device of this host. Sockets and messages are made here, ahead."""

    def __init__(self, address: str, prefixlen: int, device: str) -> None:
        """Where the device has the address now, `add` gives it back just as it is now.

        Raises `AddressError` where there is no such device.
        """
        parsed = ipaddress.ip_address(address)
        self._address, self._device = str(parsed), device
        self._family = parsed.version
        try:
            index = socket.if_nametoindex(device)
        except OSError:
            raise AddressError(
                address=self._address, device=device, detail="there is no such device"
            ) from None
        self._netlink = rtnetlink.Netlink()
        self._packets: socket.socket | None = None
        try:
            fields = _new_address(self._address, prefixlen, self._family)
            for message in self._netlink.addresses():
                found = _address_of(message) == self._address and message["index"] == index
                if found and message["prefixlen"] == prefixlen:
                    fields = _same_address(message)
            self._add = rtnetlink.new_address(index=index, **fields)
            fields["attrs"] = [one for one in fields["attrs"] if one[0] in _IDENTITY]
            self._remove = rtnetlink.delete_address(index=index, **fields)
            self._route_query = rtnetlink.route_query(self._address)
            self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._packets.bind((device, 0))
            self._frames = self._announcements(self._packets)
        except OSError as error:
            self.close()
            raise self._failed(error) from None

    def add(self) -> None:
        """Add the address; being there already is no error. IPv6 without a search for duplicates.

        On return, packets for it are delivered here. Raises `AddressError`.
        """
        try:
            with _unless(errno.EEXIST):
                self._netlink.request(self._add)
            if self._family == 6:
                self._await_local_route()
        except OSError as error:
            raise self._failed(error) from None

    def remove(self) -> None:
        """Remove the address; being gone already is no error. Raises `AddressError`."""
        try:
            with _unless(errno.EADDRNOTAVAIL, errno.ENODEV):
                self._netlink.request(self._remove)
        except OSError as error:
            raise self._failed(error) from None

    def announce(self) -> None:
        """Tell the neighbours whose address it is; nothing at devices without Ethernet addresses.

        IPv4: ARP announcements as request and as reply (RFC 5227 section 3). IPv6: an unsolicited
        neighbour advertisement with the override flag (RFC 4861 section 7.2.6). Raises
        `AddressError`.
        """
        assert self._packets is not None
        try:
            for frame in self._frames:
                self._packets.send(frame)
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        self._netlink.close()
        if self._packets is not None:
            self._packets.close()

    def _failed(self, error: OSError) -> AddressError:
        return AddressError(
            address=self._address, device=self._device, detail=os.strerror(error.errno or 0)
        )

    def _await_local_route(self) -> None:
        # The route that delivers to a new IPv6 address is made by a work item of the kernel
        # (addrconf_dad_begin() in net/ipv6/addrconf.c), after the request has been answered.
        deadline = time.monotonic() + _LOCAL_ROUTE_TIMEOUT
        while not self._netlink.is_local(self._route_query):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no local route")
            os.sched_yield()

    def _announcements(self, packets: socket.socket) -> list[bytes]:
        _, _, _, hardware, mac = packets.getsockname()
        if hardware != _ARPHRD_ETHER or len(mac) != 6 or not any(mac):
            return []
        address = ipaddress.ip_address(self._address).packed
        if self._family == 4:
            # A reply counts as an announcement only with our own address as its target, too
            # (arp_is_garp() in net/ipv4/arp.c).
            return [_arp(mac, address, 1, bytes(6)), _arp(mac, address, 2, mac)]
        forwarding = Path(f"/proc/sys/net/ipv6/conf/{self._device}/forwarding")
        router = forwarding.exists() and forwarding.read_text().strip() != "0"
        return [_neighbour_advertisement(mac, address, router)]


def inventory() -> list[HeldAddress]:
    """All addresses of this host, and what the planner must know to move one of them."""
    with rtnetlink.Netlink() as netlink:
        messages = netlink.addresses()
    held = [_held(message) for message in messages]
    secondary = {(one["device"], _network(one)) for one in held if not one["primary"]}
    for one in held:
        one["has_secondaries"] = one["primary"] and (one["device"], _network(one)) in secondary
    return held


def route_device(address: str) -> tuple[str, bool] | None:
    """(device, whether directly on its link) through which this host reaches an address.

    None where it cannot be reached, or is this host's own.
    """
    with rtnetlink.Netlink() as netlink:
        try:
            message = netlink.route(rtnetlink.route_query(address))
        except OSError:
            return None
    index = message.get_attr("RTA_OIF")
    if message["type"] != rtnetlink.RTN_UNICAST or index is None:
        return None
    on_link = not (message.get_attr("RTA_GATEWAY") or message.get_attr("RTA_VIA"))
    return socket.if_indextoname(index), on_link


# --- messages


def _new_address(address: str, prefixlen: int, family: int) -> dict[str, Any]:
    attributes: list[tuple[str, Any]] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    if family == 6:
        attributes.append(("IFA_FLAGS", _IFA_F_NODAD))
    return {"family": int(_AF[family]), "prefixlen": prefixlen, "attrs": attributes}


def _same_address(message: Any) -> dict[str, Any]:
    """What gives an address back as it was: label, broadcast, flags, and lifetimes left."""
    attributes = [
        (name, value) for name in _KEPT_ATTRIBUTES if (value := message.get_attr(name)) is not None
    ]
    flags = _flags(message)
    keep = flags & ~_IFA_F_STATE
    attributes.append(("IFA_FLAGS", keep | (_IFA_F_NODAD if message["family"] == 10 else 0)))
    lifetimes = message.get_attr("IFA_CACHEINFO")
    if lifetimes and not flags & _IFA_F_PERMANENT:
        attributes.append(("IFA_CACHEINFO", dict(lifetimes)))
    names = ("family", "prefixlen", "scope")
    return {**{name: message[name] for name in names}, "attrs": attributes}


def _address_of(message: Any) -> str:
    # IFA_ADDRESS is the other end's where IPv4 has one; IPv6 knows IFA_LOCAL only then.
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _flags(message: Any) -> int:
    flags = message.get_attr("IFA_FLAGS")  # the header's field has eight bits only
    return int(message["flags"] if flags is None else flags)


def _held(message: Any) -> HeldAddress:
    flags = _flags(message)
    family = _FAMILY[message["family"]]
    device = socket.if_indextoname(message["index"])
    return HeldAddress(
        address=_address_of(message),
        prefixlen=message["prefixlen"],
        device=device,
        family=family,
        primary=family == 6 or not flags & _IFA_F_SECONDARY,
        has_secondaries=False,
        promotes=family == 4 and _promotes(device),
        scope=_SCOPES.get(message["scope"], str(message["scope"])),
        dynamic=not flags & _IFA_F_PERMANENT,
    )


def _network(one: HeldAddress) -> str:
    return str(ipaddress.ip_interface(f"{one['address']}/{one['prefixlen']}").network)


def _promotes(device: str) -> bool:
    # Either one is enough (IN_DEV_PROMOTE_SECONDARIES, include/linux/inetdevice.h).
    files = (
        Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries") for name in ("all", device)
    )
    return any(file.exists() and file.read_text().strip() != "0" for file in files)


@contextlib.contextmanager
def _unless(*expected: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            raise


# --- frames


def _arp(mac: bytes, address: bytes, operation: int, target_mac: bytes) -> bytes:
    """An ARP packet about our own address, to everybody (RFC 826)."""
    header = _BROADCAST + mac + struct.pack("!H", _ETH_P_ARP)
    about = struct.pack("!HHBBH", _ARPHRD_ETHER, _ETH_P_IP, 6, 4, operation)
    return header + about + mac + address + target_mac + address


def _neighbour_advertisement(mac: bytes, address: bytes, router: bool) -> bytes:
    """An unsolicited neighbour advertisement with its override flag set (RFC 4861, 4.4)."""
    flags = 0x20000000 | (0x80000000 if router else 0)
    rest = struct.pack("!I", flags) + address + b"\x02\x01" + mac  # target link-layer address
    body = b"\x88\0\0\0" + rest
    pseudo = address + _ALL_NODES + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    checksum = 0xFFFF - int.from_bytes(pseudo + body, "big") % 0xFFFF
    body = b"\x88\0" + struct.pack("!H", checksum) + rest
    header = _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_P_IPV6)
    ip = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255)
    return header + ip + address + _ALL_NODES + body
