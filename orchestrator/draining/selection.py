"""Which process trees are meant by selectors, of all that runs on a node. Pure.

A selector finds processes. Each stands for the topmost process of its session above it, as CRIU
takes no part of a session; a tree that two workloads select is the first one's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from agent.errors import EXIT_REFUSED, AgentError
from agent.probe.facts import HostFacts
from agent.probe.running import Running, RunningProcess
from orchestrator.playbook.model import Select, Workload


class NothingSelected(AgentError):
    code = "nothing-selected"
    template = "nothing on {node} is {name}: {detail}"
    hint_template = (
        "Look with `ps` there; a workload that may be absent is `optional: true` in the playbook."
    )
    exit_status = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Found:
    """A process tree that is to be moved."""

    key: str  # NAME, or NAME@PID where one selector finds several
    name: str
    pid: int
    born: int  # clock ticks since the node's boot: with the PID, this very process
    comm: str
    memory: int  # bytes resident, of the root alone
    members: frozenset[int] = field(default=frozenset(), compare=False)


def select(
    workloads: Iterable[Workload], running: Running, node: str
) -> tuple[list[Found], list[NothingSelected]]:
    """All that is found, in the workloads' order, and those of which nothing is."""
    tree = _Tree(running)
    found: list[Found] = []
    missing: list[NothingSelected] = []
    taken: set[int] = set()
    for workload in workloads:
        matching = [one["pid"] for one in running["processes"] if _matches(workload, one, running)]
        roots = list(dict.fromkeys(tree.root(pid) for pid in matching))
        if not roots and not workload.optional:
            detail = _why_nothing(workload.select, running)
            missing.append(NothingSelected(node=node, name=workload.name, detail=detail))
        fresh = [pid for pid in tree.topmost(roots) if pid not in taken]
        for pid in fresh:
            key = workload.name if len(fresh) == 1 else f"{workload.name}@{pid}"
            found.append(tree.found(key, workload.name, pid))
            taken |= tree.below(pid)
    return found, missing


def find_all(running: Running, host: HostFacts, networks: Collection[str]) -> list[Found]:
    """Every tree with a service address: of `networks`, or, without any, not the host's own."""
    nets = [ipaddress.ip_network(one) for one in networks]
    own = {host["reached"], *host["named"]}
    own |= {one["address"] for one in host["addresses"] if one["dynamic"]}
    tree = _Tree(running)

    def serves(address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        if address in own or parsed.is_link_local:
            return False
        return any(parsed in net for net in nets) if nets else True

    roots = [tree.root(one["pid"]) for one in running["processes"] if any(
        map(serves, one["addresses"])
    )]  # fmt: skip
    return [
        tree.found(f"{tree.comm(pid)}@{pid}", tree.comm(pid), pid)
        for pid in tree.topmost(list(dict.fromkeys(roots)))
    ]


def still_there(running: Running, pid: int, born: int) -> bool:
    return any(one["pid"] == pid and one["born"] == born for one in running["processes"])


def _matches(workload: Workload, one: RunningProcess, running: Running) -> bool:
    select = workload.select
    if select.pid_file is not None:
        named = {file["path"]: file["pid"] for file in running["pid_files"]}
        if named.get(select.pid_file) != one["pid"]:
            return False
    if select.command is not None and not re.search(select.command, one["command"]):
        return False
    if select.port is not None and all(end.port != select.port for end in one["listening"]):
        return False
    if select.address is not None and select.address not in one["addresses"]:
        return False
    if select.unit is not None and one["unit"] not in (select.unit, f"{select.unit}.service"):
        return False
    if select.label is not None:
        key, _, value = select.label.partition("=")
        return one["labels"].get(key) == value
    return True


def _why_nothing(select: Select, running: Running) -> str:
    for file in running["pid_files"]:
        if file["path"] == select.pid_file and file["problem"]:
            return f"{file['path']}: {file['problem']}"
    asked = select.model_dump(exclude_unset=True)
    return "no process has " + ", ".join(f"{key} {value!r}" for key, value in asked.items())


class _Tree:
    """The processes by PID, and who is above whom."""

    def __init__(self, running: Running) -> None:
        self._all = {one["pid"]: one for one in running["processes"]}
        self._children: dict[int, list[int]] = {}
        for one in running["processes"]:
            self._children.setdefault(one["ppid"], []).append(one["pid"])

    def root(self, pid: int) -> int:
        """The topmost process above it, itself included, of the same session."""
        seen = {pid}
        while True:
            above = self._all[pid]["ppid"]
            if above not in self._all or above in seen:
                return pid
            if self._all[above]["sid"] != self._all[pid]["sid"]:
                return pid
            pid = above
            seen.add(pid)

    def topmost(self, pids: list[int]) -> list[int]:
        """Those that are below no other of them."""
        under = {pid: self.below(pid) for pid in pids}
        return [
            pid for pid in pids if not any(pid in under[other] for other in pids if other != pid)
        ]

    def below(self, pid: int) -> set[int]:
        """The tree of a process, itself included."""
        found, queue = {pid}, [pid]
        for one in queue:
            for child in self._children.get(one, []):
                if child not in found:
                    found.add(child)
                    queue.append(child)
        return found

    def comm(self, pid: int) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self._all[pid]["comm"]) or "process"

    def found(self, key: str, name: str, pid: int) -> Found:
        one = self._all[pid]
        members = frozenset(self.below(pid))
        memory = sum(self._all[member]["memory"] for member in members if member in self._all)
        return Found(key, name, pid, one["born"], one["comm"], memory, members)
