"""The lab's hosts, which are containers, and what is done to them from outside (Docker SDK).

Only containers on the lab's own network are ever touched.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.chaos.errors import ActionFailed, ChaosMissing, LabDown, LabHostUnknown

NETWORK = "streamferry-lab"
JOURNALS = "/var/lib/streamferry/journal"
IMAGES = "/run/streamferry"
CORDON = "/var/lib/streamferry/cordon"
RUNS = ("R", "S", "D", "I")  # of proc_pid_stat(5): neither stopped nor dead
_STEP = 200  # PIDs between workloads
_UP = 20.0  # seconds for a host to be up
_CUT = "--- 8< ---"
_LOOKS = 3
_LOOK = f"""
nft list tables; echo '{_CUT}'
ls -A {IMAGES} 2>/dev/null; echo '{_CUT}'
ls -A -I host-id {JOURNALS} 2>/dev/null; echo '{_CUT}'
ps -eo pid=,stat=,args= ww; echo '{_CUT}'
"""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until the condition holds; its value. Raises `ActionFailed` with `what`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ActionFailed(detail=f"{what}: not within {seconds:g} s")
        time.sleep(0.01)
    return value


class Hosts:
    """The containers by these names."""

    def __init__(self, *names: str) -> None:
        """Raises `ChaosMissing`, `LabDown` and `LabHostUnknown`."""
        self._containers = _containers(names)
        self._floors: dict[str, int] = {}
        self.names = names

    def run(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command on a host; its output (both kinds, trimmed)."""
        code, output = self._containers[host].exec_run(["sh", "-c", command])
        text = str(output.decode(errors="replace").strip())
        if check and code != 0:
            raise ActionFailed(detail=f"{host}: {command}: status {code}: {text}")
        return text

    def put(self, host: str, path: str, content: str) -> None:
        """Write a text file."""
        self.run(host, f"printf %s {shlex.quote(content)} > {shlex.quote(path)}")

    # --- power

    def up(self, host: str) -> bool:
        container = self._containers[host]
        container.reload()
        return bool(container.status == "running")

    def power_off(self, host: str) -> None:
        """As a host that loses its power: all that ran, and was in memory, is gone."""
        self._containers[host].kill()

    def power_on(self, host: str) -> None:
        self._containers[host].start()

    def await_up(self, host: str) -> None:
        until(lambda: self.run(host, "ss -Hltn sport 22", False), _UP, f"{host} is up")

    @contextlib.contextmanager
    def without_power(self, *hosts: str) -> Iterator[None]:
        """Kill containers; start them anew, and wait for sshd."""
        for host in hosts:
            self.power_off(host)
        try:
            yield
        finally:
            for host in hosts:
                self.power_on(host)
            for host in hosts:
                self.await_up(host)

    def restart(self, *hosts: str) -> None:
        with self.without_power(*hosts):
            pass

    def pause(self, host: str) -> None:
        """No process of it gets on."""
        self._containers[host].pause()

    def unpause(self, host: str) -> None:
        self._containers[host].unpause()

    @contextlib.contextmanager
    def standing_still(self, host: str) -> Iterator[None]:
        self.pause(host)
        try:
            yield
        finally:
            self.unpause(host)

    # --- processes

    def start(self, host: str, command: str) -> int:
        """Start a workload in its own session, with a PID that is free on all hosts."""
        if host not in self._floors:  # above what any host itself comes to, and apart
            most = int(self.run(host, "cat /proc/sys/kernel/pid_max"))
            self._floors[host] = most * (5 + self.names.index(host) % 3) // 8
        self._floors[host] += _STEP
        return int(self.run(host, f"start-high {self._floors[host]} {command}").split()[-1])

    def state(self, host: str, pid: int) -> str:
        """The letter of proc_pid_stat(5); "" where there is none."""
        return self.run(host, f"sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -c1", False)

    def alive(self, host: str, pid: int) -> bool:
        state = self.state(host, pid)
        return bool(state) and state not in "ZX"

    def entered(self, host: str, state: str) -> bool:
        """Whether a journal of a host has entered a state (agent/journal.py has the layout)."""
        record = f"state.{state}.at"
        return bool(self.run(host, f"LC_ALL=C grep -als {record} {JOURNALS}/* || true"))

    # --- network

    def device(self, host: str) -> str:
        return self.run(host, "ip -o -4 addr show to 10.77.0.0/24 | awk '{print $2; exit}'")

    def addresses(self, host: str) -> set[str]:
        lines = self.run(host, "ip -o addr show scope global").splitlines()
        return {line.split()[3].partition("/")[0] for line in lines}

    def own_addresses(self, host: str) -> tuple[str, ...]:
        """Those by which it is a host of the lab, of both families."""
        self._containers[host].reload()
        about = self._containers[host].attrs["NetworkSettings"]["Networks"][NETWORK]
        return tuple(filter(None, (about["IPAddress"], about["GlobalIPv6Address"])))

    # --- what is left

    def _look(self, host: str) -> list[str]:
        """The parts of `_LOOK`; once more where Docker has lost the end of what it printed."""
        for _ in range(_LOOKS):
            *parts, rest = f"{self.run(host, _LOOK)}\n".split(f"{_CUT}\n")
            if len(parts) == 4 and not rest:
                return parts
        raise RuntimeError(f"{host} does not say what is there")

    def leftovers(self, host: str, *, allowed_stopped: tuple[int, ...] = ()) -> list[str]:
        """What a migration that is over must not leave behind on a host."""
        found = []
        tables, images, journals, processes = self._look(host)
        found += [line for line in tables.splitlines() if "streamferry" in line]
        if images.strip():
            found.append(f"images: {images.strip()}")
        if journals.strip():
            found.append(f"journals: {journals.strip()}")
        for line in processes.strip().splitlines():
            pid, state, arguments = line.split(None, 2)
            if int(pid) in allowed_stopped:
                continue
            if state[0] in "Tt":
                found.append(f"stopped: {line}")
            if any(name in arguments for name in ("criu", "agent.guardian", "memfd")):
                found.append(f"process: {line}")
            if "streamferry" in arguments and "sh -c" not in arguments:
                found.append(f"process: {line}")
        return found


def add_address(hosts: Hosts, host: str, address: str, client: str) -> None:
    """Give a host a service address; the client may have known it elsewhere."""
    length, flags = ("64", "nodad") if ":" in address else ("24", "")
    hosts.run(host, f"ip addr add {address}/{length} dev {hosts.device(host)} {flags}")
    hosts.run(client, f"ip neigh flush to {address} dev {hosts.device(client)}")


def drop_address(hosts: Hosts, host: str, address: str) -> None:
    """Take it away, and what connections of ended processes would wait there for their end."""
    hosts.run(host, f"ss -HKta src '{f'[{address}]' if ':' in address else address}'", check=False)
    length = 64 if ":" in address else 24
    hosts.run(host, f"ip addr del {address}/{length} dev {hosts.device(host)}", check=False)


def _containers(names: tuple[str, ...]) -> dict[str, Any]:
    try:
        import docker
    except ImportError:
        raise ChaosMissing(package="docker") from None
    try:
        client = docker.from_env()
        network = client.networks.list(names=[NETWORK], greedy=True)
    except docker.errors.DockerException as error:
        raise LabDown(detail=f"Docker does not answer ({error})"[:300]) from None
    there = {one.name: one for net in network for one in net.containers}
    if not there:
        raise LabDown(detail=f"no container is on a network {NETWORK}")
    found = {}
    for name in names:
        if name in there and there[name].status == "running":
            found[name] = there[name]
            continue
        with contextlib.suppress(docker.errors.NotFound):  # one without power is on no network
            stopped = client.containers.get(name)
            if NETWORK in stopped.attrs["NetworkSettings"]["Networks"]:
                raise LabDown(detail=f"{name} is {stopped.status}")
        raise LabHostUnknown(host=name, known=", ".join(sorted(there)))
    return found
