"""What of the destination is in the way of a process tree; each thing is looked at or tried."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agent.journal import DIRECTORY
from agent.kernel import proc, sockdiag, uapi
from agent.probe import files
from agent.probe.capabilities import has
from agent.probe.facts import (
    DestinationFacts,
    FileProblem,
    LowLimit,
    MissingOption,
    ProcessFacts,
    TakenPid,
    TakenPort,
)
from agent.sync.paths import MAX_PATHS
from agent.tcp import options
from agent.tcp.option_check import missing
from agent.unended import refuse_looking

_HEX = re.compile(r"([0-9a-f]{2})*")
LIMIT = 50  # of one kind; the first few say it all
_MOST_FILES = MAX_PATHS  # all that can be brought
_TCP_CLOSE_STATES = (uapi.TCP_CLOSE, uapi.TCP_TIME_WAIT)


class Port(NamedTuple):
    """A local address that the tree will bind here."""

    protocol: str  # "tcp" or "udp"
    family: int  # 4 or 6
    address: str
    port: int
    v6only: bool


def look(process: ProcessFacts, journals: Path = DIRECTORY) -> DestinationFacts:
    """What is in the way of `process` on this host.

    Raises an error of `agent.unended` where what has its PIDs here is a copy of a migration that
    has not ended, and perhaps the only one that lives.
    """
    taken = _taken(process)
    refuse_looking({one["owner"] for one in taken}, journals)
    return DestinationFacts(
        taken=taken[:LIMIT],
        files=_files(process),
        ports=_ports(process)[:LIMIT],
        unix_names=_unix_names(process),
        limits=_limits(process)[:LIMIT],
        missing_options=_missing_options(process)[:LIMIT],
    )


def _missing_options(process: ProcessFacts) -> list[MissingOption]:
    """What sockets of the tree have and those of this host cannot: each is tried on a fresh one."""
    found = []
    for family, number in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        rows = [
            (one.level, one.number, bytes.fromhex(one.data) if one.data else one.value)
            for one in process["options"]
            if one.family == family and _HEX.fullmatch(one.data)
        ]
        rows = [row for row in rows if options.valid(*row)]
        with contextlib.suppress(OSError):  # without the family, its ports tell
            found += [(one.name, one.reason) for one in missing(rows, number)]
    return [MissingOption(option=name, reason=reason) for name, reason in dict.fromkeys(found)]


def _taken(process: ProcessFacts) -> list[TakenPid]:
    """PIDs and thread IDs of the tree that exist here."""
    found = []
    for one in process["processes"]:
        for tid in one["threads"]:
            with contextlib.suppress(OSError):
                owner = int(proc.status(tid)["Tgid"])
                found.append(TakenPid(pid=tid, owner=owner, comm=proc.comm(owner)))
    return found


def _files(process: ProcessFacts) -> list[FileProblem]:
    problems = (files.compare(one) for one in process["files"])
    return [one for one in problems if one is not None][:_MOST_FILES]


def _ports(process: ProcessFacts) -> list[TakenPort]:
    found = [taken for port in wanted_ports(process) if (taken := _try_bind(port)) is not None]
    owners = _owners({one["port"] for one in found if one["protocol"] == "tcp"})
    for one in found:
        if one["protocol"] == "tcp":
            one["pid"], one["comm"] = owners.get(one["port"], (0, ""))
    return found


def wanted_ports(process: ProcessFacts) -> Iterable[Port]:
    """Each address and port to bind, once; those of connections that a listener has not."""
    ports = {
        Port("tcp", one["family"], one["address"], one["port"], one["v6only"]): None
        for one in process["listeners"]
    }
    listening = {(one["family"], one["address"], one["port"]) for one in process["listeners"]}
    wild = {port for _, address, port in listening if address in ("0.0.0.0", "::")}
    for one in process["connections"]:
        if one.local_port not in wild and one[:3] not in listening:
            ports[Port("tcp", one.family, one.local, one.local_port, False)] = None
    for bound in process["bound"]:
        port = Port(bound["protocol"], bound["family"], bound["address"], bound["port"], False)
        ports[port] = None
    return ports


def _try_bind(wanted: Port) -> TakenPort | None:
    """Bind as the restore will (bind(2), with SO_REUSEADDR for TCP), and let go at once."""
    family = socket.AF_INET if wanted.family == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if wanted.protocol == "tcp" else socket.SOCK_DGRAM
    problem = ""
    ipaddress.ip_address(wanted.address)  # raises: bind() would ask for a name's address
    try:
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.IPPROTO_IP, uapi.IP_FREEBIND, 1)  # it is not here yet
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, uapi.IPV6_V6ONLY, wanted.v6only)
            sock.bind((wanted.address, wanted.port))
    except OSError as error:
        link_local = ipaddress.ip_address(wanted.address).is_link_local
        if error.errno == errno.EINVAL and link_local:
            return None  # it needs a device; the planner refuses it for what it is
        problem = error.strerror or str(error)
    except (OverflowError, ValueError) as error:
        problem = str(error)
    if not problem:
        return None
    return TakenPort(
        protocol=wanted.protocol,
        address=wanted.address,
        port=wanted.port,
        pid=0,
        comm="",
        detail=problem,
    )


def _owners(ports: set[int]) -> dict[int, tuple[int, str]]:
    """TCP port -> (PID, name) of one process here that has it."""
    if not ports:
        return {}
    links: dict[str, int] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for one in sockdiag.tcp(family):
            if one.inode and one.local_port in ports and one.state not in _TCP_CLOSE_STATES:
                links[f"socket:[{one.inode}]"] = one.local_port
    holders = proc.holders(links, ())
    return {links[link]: (one.pid, one.comm) for link, one in holders.items()}


def _unix_names(process: ProcessFacts) -> list[str]:
    """Names of the tree's unix sockets that a socket here is bound to."""
    if not process["unix_names"]:
        return []
    here = {proc.printable(one.name) for one in sockdiag.unix().values() if one.name}
    return [name for name in process["unix_names"] if name in here]


def _limits(process: ProcessFacts) -> list[LowLimit]:
    """Hard limits that the agent here may not raise to what a process has (setrlimit(2))."""
    if has(int(proc.status(os.getpid())["CapEff"], 16), "CAP_SYS_RESOURCE"):
        return []
    offered = proc.hard_limits("self")
    return [
        LowLimit(pid=one["pid"], limit=name, needed=needed, offered=offered[name])
        for one in process["processes"]
        for name, needed in one["limits"].items()
        if name in offered and offered[name] != -1 and (needed == -1 or needed > offered[name])
    ]
