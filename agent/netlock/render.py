"""Render the network lock as nft scripts. Pure; `agent.netlock.apply` runs them.

A migration's lock is one table of family inet, made, replaced and removed in one transaction each.
Connections and listeners are held in sets, so that the number of rules does not depend on them.
Rules match the service's own end only: a peer's port is never compared with a listener's.

Chains hook in at priority -300 (raw), before connection tracking sees a packet. Listeners on any
address are matched in the input hook, where only packets for an address of this host arrive: a
packet that is only forwarded to the same port elsewhere passes.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

# SO_MARK of the segments that the agents inject themselves; the lock lets them through.
LOCK_PASS_MARK: Final = 0x5F17

TABLE_PREFIX: Final = "streamferry_"
TIME_WAITS: Final = "_time_wait"

Stage = Literal["hold_syn", "full"]

_PRIORITY = -300  # NF_IP_PRI_RAW, include/uapi/linux/netfilter_ipv4.h
_NEW_SYN = "tcp flags & (fin | syn | rst | ack) == syn"
_SET_TYPES = {
    "connections4": "ipv4_addr . inet_service . ipv4_addr . inet_service",
    "connections6": "ipv6_addr . inet_service . ipv6_addr . inet_service",
    "listeners4": "ipv4_addr . inet_service",
    "listeners6": "ipv6_addr . inet_service",
    "ports4": "inet_service",
    "ports6": "inet_service",
}
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_IP = {4: "ip", 6: "ip6"}
_PROTOCOL = {4: "ipv4", 6: "ipv6"}
_UNSAFE = re.compile(r"[^A-Za-z0-9]")
_UNSAFE_IN_COMMENT = re.compile(r"[^A-Za-z0-9._:-]")


@dataclass(frozen=True, slots=True, order=True)
class Connection:
    """A TCP connection as its packets show it; addresses textual, without a scope."""

    family: int  # 4 or 6
    local: str
    local_port: int
    remote: str
    remote_port: int

    def astuple(self) -> tuple[int, str, int, str, int]:
        return (self.family, self.local, self.local_port, self.remote, self.remote_port)


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A listening TCP socket. A dual-stack one is two: one of each family."""

    family: int  # 4 or 6
    address: str | None  # None: any address of this host
    port: int


def table_name(migration_id: str) -> str:
    """The name of a migration's table (in family inet)."""
    return TABLE_PREFIX + _UNSAFE.sub("_", migration_id)


def lock(
    migration_id: str,
    connections: Collection[Connection],
    listeners: Collection[Listener],
    *,
    stage: Stage,
) -> str:
    """The script that makes a migration's table, in place of the one it may have already.

    "hold_syn" drops new SYNs to the listeners and nothing else: handshakes under way are
    completed, connections go on; `tighten` follows. "full" drops every TCP packet of the
    connections and of the listeners' addresses and ports, in both directions, except those marked
    `LOCK_PASS_MARK`.
    Raises `ValueError` for anything that is not an address of its family or a port.
    """
    table = table_name(migration_id)
    comment = _UNSAFE_IN_COMMENT.sub("_", migration_id)[:100]
    elements = _connection_elements(connections) | _listener_elements(listeners)
    lines = [
        *_removal(table),
        f"table inet {table} {{",
        f'comment "streamferry {comment}"',
    ]
    for name, kind in _SET_TYPES.items():
        lines.append(f"set {name} {{ type {kind}")
        if elements.get(name):
            lines.append(f"elements = {{ {_joined(elements[name])} }}")
        lines.append("}")
    rules = _hold_syn_rules() if stage == "hold_syn" else _full_rules()
    lines += [*_chains(rules), "}"]
    return "\n".join(lines) + "\n"


def tighten(migration_id: str, connections: Collection[Connection]) -> str:
    """The script that takes a lock from "hold_syn" to "full", with more connections in its sets.

    What the sets have already is not sent again: ten thousand cost a tenth of a second. Raises
    `ValueError` as `lock`.
    """
    table = table_name(migration_id)
    lines = [f"flush table inet {table}", f"table inet {table} {{", *_chains(_full_rules()), "}"]
    return add_connections(migration_id, connections) + "\n".join(lines) + "\n"


def check(connections: Iterable[Connection]) -> None:
    """Raises `ValueError` for anything that is not an address of its family or a port."""
    _connection_elements(connections)


def add_connections(migration_id: str, connections: Collection[Connection]) -> str:
    """The script that adds connections to a lock; those it has already are no error."""
    table = table_name(migration_id)
    return "".join(
        f"add element inet {table} {name} {{ {_joined(elements)} }}\n"
        for name, elements in _connection_elements(connections).items()
        if elements
    )


def time_waits(
    migration_id: str, connections: Collection[Connection], *, log_group: int | None = None
) -> str:
    """The script that makes the table of what is in TIME_WAIT: nothing comes to it, nothing goes.

    With a log group (nfnetlink_log) what it would send is found there. Raises `ValueError`.
    """
    table = table_name(migration_id) + TIME_WAITS
    lines = [*_removal(table), f"table inet {table} {{"]
    for name, elements in _connection_elements(connections).items():
        lines.append(f"set {name} {{ type {_SET_TYPES[name]}")
        if elements:
            lines.append(f"elements = {{ {_joined(elements)} }}")
        lines.append("}")
    log = "" if log_group is None else f"log group {log_group} snaplen 128 "
    inward, outward = [], []
    for family, ip in _IP.items():
        inward.append(f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @connections{family} drop")
        outward.append(
            f"{ip} saddr . tcp sport . {ip} daddr . tcp dport @connections{family} {log}drop"
        )
    lines += [*_chains({"prerouting": inward, "output": outward}), "}"]
    return "\n".join(lines) + "\n"


def unlock_time_waits(migration_id: str) -> str:
    """The script that removes the table of `time_waits`; none is no error."""
    return "\n".join(_removal(table_name(migration_id) + TIME_WAITS)) + "\n"


def unlock(migration_id: str) -> str:
    """The script that removes a migration's table; none is no error."""
    return "\n".join(_removal(table_name(migration_id))) + "\n"


# --- parts


def _removal(table: str) -> list[str]:
    # "delete" of a table that is not there fails; after "add" it always is there.
    return [f"add table inet {table}", f"delete table inet {table}"]


def _chains(rules: dict[str, list[str]]) -> list[str]:
    lines = []
    for hook, statements in rules.items():
        lines += [
            f"chain {hook} {{",
            f"type filter hook {hook} priority {_PRIORITY}; policy accept;",
            f"meta mark {LOCK_PASS_MARK:#x} accept",
            *statements,
            "}",
        ]
    return lines


def _hold_syn_rules() -> dict[str, list[str]]:
    return {
        "prerouting": [
            f"{_NEW_SYN} {ip} daddr . tcp dport @listeners{family} drop"
            for family, ip in _IP.items()
        ],
        "input": [
            f"{_NEW_SYN} meta nfproto {name} tcp dport @ports{family} drop"
            for family, name in _PROTOCOL.items()
        ],
    }


def _full_rules() -> dict[str, list[str]]:
    inward, outward, to_any = [], [], []
    for family, ip in _IP.items():
        inward += [
            f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @connections{family} drop",
            f"{ip} daddr . tcp dport @listeners{family} drop",
        ]
        to_any.append(f"meta nfproto {_PROTOCOL[family]} tcp dport @ports{family} drop")
        outward += [
            f"{ip} saddr . tcp sport . {ip} daddr . tcp dport @connections{family} drop",
            f"{ip} saddr . tcp sport @listeners{family} drop",
            f"meta nfproto {_PROTOCOL[family]} tcp sport @ports{family} drop",
        ]
    return {"prerouting": inward, "input": to_any, "output": outward}


def _connection_elements(connections: Iterable[Connection]) -> dict[str, set[str]]:
    elements: dict[str, set[str]] = {"connections4": set(), "connections6": set()}
    for one in connections:
        local, remote = _address(one.family, one.local), _address(one.family, one.remote)
        elements[f"connections{one.family}"].add(
            f"{local} . {_port(one.local_port)} . {remote} . {_port(one.remote_port)}"
        )
    return elements


def _listener_elements(listeners: Iterable[Listener]) -> dict[str, set[str]]:
    elements: dict[str, set[str]] = {name: set() for name in _SET_TYPES if name[0] in "lp"}
    for one in listeners:
        if one.address is None:
            if one.family not in _IP:
                raise ValueError(f"{one.family} is no address family")
            elements[f"ports{one.family}"].add(_port(one.port))
        else:
            address = _address(one.family, one.address)
            elements[f"listeners{one.family}"].add(f"{address} . {_port(one.port)}")
    return elements


def _address(family: int, value: str) -> str:
    # These may come from the other host: what is not an address must not get into a script.
    try:
        return socket.inet_ntop(_AF[family], socket.inet_pton(_AF[family], value))
    except (OSError, ValueError, KeyError):  # ValueError: a zero byte
        raise ValueError(f"{value!r} is not an address of family {family}") from None


def _port(value: int) -> str:
    if not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError(f"{value!r} is not a port")
    return str(int(value))


def _joined(elements: Iterable[str]) -> str:
    # One a line: nft repeats the line that it complains about.
    return ",\n".join(elements)
