"""What a migration costs the lab's hosts: CPU seconds of all that runs there, peaks of the agents.

Seen from the machine, through the containers' control groups (v1 or v2), so that both ways of
moving are measured alike; the workload's own time is part of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import docker

_AGENT = b"streamferry-agent"
_EVERY = 0.1  # seconds between looks at the agents' peaks, which only grow


@dataclass(slots=True)
class Cost:
    """Of one host."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0  # VmHWM of the agent


class Usage:
    """Measures from `__enter__` to `__exit__`."""

    def __init__(self, hosts: Sequence[str]) -> None:
        client = docker.from_env()
        self._groups = {host: _group(client.containers.get(host).attrs) for host in hosts}
        self._costs = {host: Cost() for host in hosts}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def of(self, host: str) -> Cost:
        return self._costs[host]

    def __enter__(self) -> Usage:
        for host, group in self._groups.items():
            self._costs[host].cpu_seconds = -_cpu_seconds(group)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for host, group in self._groups.items():
            self._costs[host].cpu_seconds += _cpu_seconds(group)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            for host, group in self._groups.items():
                cost = self._costs[host]
                for pid in (group / "cgroup.procs").read_text().split():
                    cost.peak_bytes = max(cost.peak_bytes, _peak(pid))


def _group(attributes: dict[str, object]) -> Path:
    state = attributes["State"]
    assert isinstance(state, dict)
    rows = (line.split(":", 2) for line in Path(f"/proc/{state['Pid']}/cgroup").open())
    paths = {kind: path.strip().lstrip("/") for _, kinds, path in rows for kind in kinds.split(",")}
    if "cpuacct" in paths:
        return Path("/sys/fs/cgroup/cpuacct", paths["cpuacct"])
    return Path("/sys/fs/cgroup", paths[""])


def _cpu_seconds(group: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return int((group / "cpuacct.usage").read_text()) / 1e9
    fields = dict(line.split() for line in (group / "cpu.stat").open())
    return int(fields["usage_usec"]) / 1e6


def _peak(pid: str) -> int:
    """VmHWM of an agent; 0 of anything else, or one that has gone."""
    with contextlib.suppress(OSError):
        if _AGENT in Path(f"/proc/{pid}/cmdline").read_bytes():
            for line in Path(f"/proc/{pid}/status").open():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
    return 0
