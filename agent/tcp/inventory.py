"""What a tree's TCP sockets are connected to, and whether its listeners still owe an accept.

Copies of the sockets are taken only for the moment of asking: a copy that is kept would hold back
the FIN of a connection that the process closes meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import AgentError
from agent.kernel import sockdiag, uapi
from agent.netlock.render import Connection
from agent.tcp import opening
from agent.tcp.steal import accept_queue, socket_descriptors, state_of, steal
from agent.tcp.stream import ALONE, format_address

_MAPPED = "::ffff:"
_POLL = 0.001
_SETTLE = 1.0  # seconds for the accept queues to drain


class AcceptQueueStuck(AgentError):
    code = "accept-queue"
    template = "{count} connections to {listener} wait, and the process does not accept them"
    hint_template = "See why it does not call accept(); then run the migration again."


class StillClosing(AgentError):
    code = "still-closing"
    template = (
        "{count} connections that the process has closed have not reached their end: {connection}"
    )
    hint_template = (
        "What is still to be delivered would be lost. Wait for these peers, or give them up with "
        "`ss -K`, then run the migration again."
    )


@dataclass(slots=True)
class Inventory:
    """The connections of a tree, and what its restore needs sockets for."""

    connections: list[Connection] = field(default_factory=list)
    families: list[int] = field(default_factory=list)  # AF_*, of connections and listeners


def take_inventory(pidfds: Mapping[int, int]) -> Inventory:
    """The live TCP sockets of the processes now."""
    stolen = steal(pidfds, socket_descriptors(pidfds))
    try:
        return inventory_of(stolen.values())
    finally:
        for sock in stolen.values():
            sock.close()


def inventory_of(sockets: Iterable[socket.socket]) -> Inventory:
    """The same of copies that there are already."""
    inventory = Inventory()
    for sock in sockets:
        with contextlib.suppress(OSError):  # not connected any more
            inventory.families.append(sock.family)
            if state_of(sock) not in ALONE:
                inventory.connections.append(connection_of(sock))
    return inventory


def connection_of(sock: socket.socket) -> Connection:
    """What a connected socket's packets carry. Raises `OSError` when it is not connected."""
    return connection(sock.getsockname(), opening.peer_name(sock))


def connection(local: tuple[str, int], remote: tuple[str, int]) -> Connection:
    """The same from its two addresses; IPv4-mapped ones are IPv4 on the wire."""
    here, there = (one[0].partition("%")[0].removeprefix(_MAPPED) for one in (local, remote))
    family = 6 if ":" in here else 4
    return Connection(family, here, local[1], there, remote[1])


async def drain_accept_queues(pidfds: Mapping[int, int]) -> None:
    """Wait until each listener's queue of accepted and half-open connections is empty.

    New SYNs must be held off. Raises `AcceptQueueStuck`.
    """
    stolen = steal(pidfds, socket_descriptors(pidfds)).values()
    listeners = [sock for sock in stolen if _close_unless_listening(sock)]
    ports = {sock.getsockname()[1] for sock in listeners}
    deadline = time.monotonic() + _SETTLE
    try:
        while any(map(accept_queue, listeners)) or half_open(ports):
            if time.monotonic() > deadline:
                for sock in listeners:
                    if count := accept_queue(sock):
                        host, port = sock.getsockname()[:2]
                        raise AcceptQueueStuck(count=count, listener=f"{host} port {port}")
                return  # what is half-open only is for the peer to try again
            await asyncio.sleep(_POLL)
    finally:
        for sock in listeners:
            sock.close()


async def drain_closing(addresses: Collection[str]) -> None:
    """Wait until every connection that was closed on `addresses` has delivered all.

    No process has them any more, so they cannot be moved. Raises `StillClosing`.
    """
    deadline = time.monotonic() + _SETTLE
    while time.monotonic() < deadline:
        if not still_closing(addresses):
            return
        await asyncio.sleep(_POLL)
    check_closing(addresses)


def check_closing(addresses: Collection[str]) -> None:
    """Raises `StillClosing` where `drain_closing` would wait."""
    if found := still_closing(addresses):
        one = found[0]
        ends = (one.local, one.local_port), (one.remote, one.remote_port)
        raise StillClosing(count=len(found), connection=" - ".join(map(format_address, ends)))


def still_closing(addresses: Collection[str]) -> list[sockdiag.Ends]:
    """The connections on `addresses` without a process whose end was not acknowledged."""
    wanted = {*addresses, *(f"{_MAPPED}{one}" for one in addresses)}
    families = (socket.AF_INET, socket.AF_INET6)
    return [one for family in families for one in sockdiag.orphans(family) if one.local in wanted]


def _close_unless_listening(sock: socket.socket) -> bool:
    if state_of(sock) == uapi.TCP_LISTEN:
        return True
    sock.close()
    return False


def half_open(ports: Iterable[int]) -> int:
    """How many connections to local `ports` are in SYN_RECV (proc_net_tcp(5))."""
    endings = tuple(f":{port:04X}" for port in ports)
    state = f"{uapi.TCP_SYN_RECV:02X}"
    count = 0
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
                fields = line.split(None, 4)
                if fields[3] == state and fields[1].endswith(endings):
                    count += 1
    return count
