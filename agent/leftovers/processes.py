"""Finds agents, guardians and CRIUs, and the processes with sockets in repair mode.

Costs one readlink(2) a descriptor of the host and some microseconds a socket; bounded, see `LIMIT`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable

from agent.freeze import children, thread_states
from agent.kernel import proc, uapi
from agent.leftovers.cgroups import Freezers
from agent.leftovers.seen import Places, SeenProcess, SeenTask
from agent.plan import ID_PATTERN
from agent.tcp.opening import peer_name
from agent.tcp.steal import socket_descriptors, steal

LIMIT = 10.0  # seconds for the sockets of a host
_AGENT = "streamferry-agent"  # the name of its memfd, in its code, too (orchestrator.bootstrap)
_GUARDIAN = "from agent.guardian import main"
_PARASITE = "/memfd:CRIUMFD"  # compel's name for it (MEMFD_FNAME, compel/include/infect-priv.h)
_USERFAULTFD = "anon_inode:[userfaultfd]"
_SHOWN = 100  # characters of an argument


class Processes:
    """One look at the processes of a host."""

    def __init__(self, places: Places) -> None:
        self._journal = re.compile(
            rf"{re.escape(str(places.journals))}/({ID_PATTERN.pattern})-(\w+)( \(deleted\))?"
        )
        self._guarded = str(places.journals)
        self.agents: list[SeenProcess] = []
        self.guardians: list[SeenProcess] = []
        self.criu: list[SeenProcess] = []
        self.pids: list[int] = []
        self._elsewhere: list[int] = []  # agents of a container's own
        self._here = _namespaces("self")
        own = set(proc.ancestors(os.getpid()))
        for pid in places.pids():
            if pid in own:
                continue
            with contextlib.suppress(OSError, ValueError):
                arguments = proc.cmdline(pid)
                if arguments:  # neither a kernel thread nor a zombie
                    self.pids.append(pid)
                    self._sort(pid, arguments)

    def _sort(self, pid: int, arguments: list[str]) -> None:
        if any(_GUARDIAN in one for one in arguments[:4]):
            self._guardian(pid, arguments)
        elif any(_AGENT in one for one in arguments[:4]):
            self._agent(pid, arguments)
        elif os.path.basename(arguments[0]) == "criu":
            self._criu(pid, arguments)

    def _agent(self, pid: int, arguments: list[str]) -> None:
        links = proc.descriptors(pid).values()
        if not any(link.startswith(f"/memfd:{_AGENT}") for link in links):
            return  # its shell, or somebody who looks for it
        if _namespaces(pid) != self._here:
            self._elsewhere.append(pid)
            return
        opened = [match for link in links if (match := self._journal.fullmatch(link))]
        migration, role, deleted = opened[0].groups() if opened else ("", "", None)
        self.agents.append(
            SeenProcess(
                pid,
                proc.born(pid),
                proc.stat(pid).ppid,
                _short(arguments),
                migration,
                role,
                unlinked=bool(deleted),
            )
        )

    def _guardian(self, pid: int, arguments: list[str]) -> None:
        """[python, -c, code, root, migration, role, directory, descriptor, agent]"""
        if len(arguments) < 6 or arguments[-3] != self._guarded:
            return
        if _namespaces(pid) != self._here:  # its numbers and paths are others
            return
        migration, role, agent = arguments[-5], arguments[-4], int(arguments[-1])
        born, began = proc.born(pid), proc.born(agent)
        states = set(thread_states(agent).values())
        # A process that is younger than the guardian only has its agent's number.
        watched = bool(began) and began <= born and not states <= {"Z", "X"}
        parent = proc.stat(pid).ppid
        self.guardians.append(
            SeenProcess(pid, born, parent, _short(arguments), migration, role, watched)
        )

    def _criu(self, pid: int, arguments: list[str]) -> None:
        serving = bool(children(pid)) or _USERFAULTFD in proc.descriptors(pid).values()
        parent = proc.stat(pid).ppid
        self.criu.append(
            SeenProcess(pid, proc.born(pid), parent, _short(arguments), serving=serving)
        )

    def tasks(self, wanted: Iterable[int], freezers: Freezers) -> tuple[dict[int, SeenTask], bool]:
        """Processes worth a closer look, and whether there was time for all of them: those with
        sockets in repair mode, and of `wanted` all that there are."""
        found: dict[int, SeenTask] = {}
        # What an agent has a copy of is of a migration under way, in a container, too.
        owned = set(socket_descriptors([*self._elsewhere, *(one.pid for one in self.agents)]))
        always = set(wanted)
        deadline = time.monotonic() + LIMIT
        for pid in sorted({*self.pids, *always}, key=lambda one: (one not in always, one)):
            if time.monotonic() > deadline:
                return found, False
            with contextlib.suppress(OSError, ValueError):
                connections = _in_repair_mode(pid, owned)
                states = set(thread_states(pid).values())
                if not states or states <= {"Z", "X"}:
                    continue
                if connections or pid in always:
                    found[pid] = _task(pid, states, connections, freezers)
                elif states <= {"T", "t"} and _has_parasite(pid):
                    found[pid] = _task(pid, states, (), freezers)
        return found, True


def _namespaces(pid: int | str) -> tuple[str, str]:
    return os.readlink(f"/proc/{pid}/ns/pid"), os.readlink(f"/proc/{pid}/ns/mnt")


def descendants(roots: Iterable[int]) -> set[int]:
    """The processes and all below them."""
    found: set[int] = set()
    queue = list(roots)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += children(pid)
    return found


def tracees(pids: Iterable[int]) -> dict[int, list[int]]:
    """Tracer -> those of the processes that it traces."""
    found: dict[int, list[int]] = {}
    for pid in pids:
        with contextlib.suppress(OSError, KeyError, ValueError):
            if tracer := int(proc.status(pid)["TracerPid"]):
                found.setdefault(tracer, []).append(pid)
    return found


def _short(arguments: list[str]) -> tuple[str, ...]:
    return tuple(one[:_SHOWN] for one in arguments[:12])


def _task(pid: int, states: set[str], connections: tuple[str, ...], freezers: Freezers) -> SeenTask:
    return SeenTask(
        pid,
        proc.comm(pid),
        states <= {"T", "t", "Z", "X"},
        int(proc.status(pid).get("TracerPid", "0")),
        _has_parasite(pid),
        connections,
        freezers.frozen(pid),
    )


def _has_parasite(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(one.path.startswith(_PARASITE) for one in proc.maps(pid))
    return False


def _in_repair_mode(pid: int, owned: set[int]) -> tuple[str, ...]:
    """Its TCP sockets in repair mode; of a shared one only the first owner is told."""
    descriptors = socket_descriptors([pid])
    if not descriptors:
        return ()
    found = []
    pidfd = os.pidfd_open(pid)
    try:
        for inode, at in descriptors.items():
            if inode in owned:
                continue
            # One at a time: a host has more sockets than we may have descriptors.
            for sock in steal({pid: pidfd}, {inode: at}).values():
                with contextlib.closing(sock), contextlib.suppress(OSError):
                    if sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR):
                        owned.add(inode)
                        found.append(_ends(sock))
    finally:
        os.close(pidfd)
    return tuple(found)


def _ends(sock: socket.socket) -> str:
    local = sock.getsockname()
    try:
        remote = peer_name(sock)
    except OSError:  # it listens, or has forgotten its peer
        return _end(local[0], local[1])
    return f"{_end(local[0], local[1])} - {_end(*remote)}"


def _end(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
