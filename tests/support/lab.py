"""The lab's hosts as tests use them: commands, workloads, clients, migrations, leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests/lab/programs"
SSH_CONFIG = ROOT / "lab/ssh_config"
SERVICE = "10.77.0.100"
SERVICE6 = "fd77::100"
HOSTS = ("src", "dst")
SPARE = "spare"
ALL = (*HOSTS, SPARE)
CORDON = "/var/lib/streamferry/cordon"
JOURNALS = "/var/lib/streamferry/journal"
_STEP = 200  # PIDs between workloads

_WORKLOADS = (
    "[r]edis-server|[n]ginx|[b]yte_server|[m]any_server|[s]leep 1000|[m]emcached|"
    "/tmp/[a]syncio_echo|/tmp/[w]orker[.]py"
)
_CLEAR = f"""
pkill -KILL -f '{_WORKLOADS}'
pkill -KILL -f 'agent[.]guardian|streamferry-[a]gent'
rm -rf /run/streamferry {JOURNALS} {CORDON} /run/lab-* /srv/lab-*
nft list tables | grep -E 'streamferry|chaos_cut' | while read -r table; do nft delete $table; done
ip -o addr | while read -r _ device _ address _; do
    case $address in
    10.77.0.1[0-9][0-9]/*|{SERVICE6}/*) ip addr del "$address" dev "$device" ;;
    esac
done
true
"""
_CUT = "--- 8< ---"
_LOOK = f"""
nft list tables; echo '{_CUT}'
ls -A /run/streamferry 2>/dev/null; echo '{_CUT}'
ls -A -I host-id {JOURNALS} 2>/dev/null; echo '{_CUT}'
ps -eo pid=,stat=,args= ww
"""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until the condition holds; its value. Fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return value


@dataclass
class Migration:
    """What one run of `migrate` came to."""

    status: int
    result: dict[str, Any]
    stderr: str
    started: float  # CLOCK_MONOTONIC
    ended: float


@dataclass
class Client:
    """A program of tests/lab/programs that runs in the client's container."""

    process: subprocess.Popen[str]
    name: str
    lines: list[str] = field(default_factory=list)

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"{self.name} ended without a word (status {self.process.poll()})"
        return line

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Close its stdin and take its result."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        line = self.line()
        self.process.wait(timeout=60)
        result = json.loads(line)
        assert isinstance(result, dict)
        return result


class Lab:
    """The containers that `make lab` has brought up. `hosts` are those that a test uses."""

    def __init__(self) -> None:
        self.hosts: tuple[str, ...] = HOSTS
        self._docker = docker.from_env()
        self._floors: dict[str, int] = {}
        self._state = tempfile.mkdtemp(prefix="lab-state-")  # `migrate list` has it here
        weakref.finalize(self, shutil.rmtree, self._state, True)
        self._containers = {name: self._docker.containers.get(name) for name in (*ALL, "client")}

    def run(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command on a host; its output (both kinds, trimmed)."""
        code, output = self._containers[host].exec_run(["sh", "-c", command])
        text = str(output.decode(errors="replace").strip())
        assert code == 0 or not check, f"{host}: {command}: status {code}: {text}"
        return text

    def entered(self, host: str, state: str) -> bool:
        """Whether a journal of a host has entered a state (agent/journal.py has the layout)."""
        record = f"state.{state}.at"
        return bool(self.run(host, f"LC_ALL=C grep -als {record} {JOURNALS}/* || true"))

    @contextlib.contextmanager
    def without_power(self, *hosts: str) -> Iterator[None]:
        """Kill containers, as hosts that lose their power; start them anew, and wait for sshd."""
        for host in hosts:
            self._containers[host].kill()
        try:
            yield
        finally:
            for host in hosts:
                self._containers[host].start()
            for host in hosts:
                until(lambda h=host: self.run(h, "ss -Hltn sport 22", False), 20, f"{host} is up")

    def restart(self, *hosts: str) -> None:
        with self.without_power(*hosts):
            pass

    @contextlib.contextmanager
    def standing_still(self, host: str) -> Iterator[None]:
        """No process of a host gets on."""
        self._containers[host].pause()
        try:
            yield
        finally:
            self._containers[host].unpause()

    @contextlib.contextmanager
    def limited(self, rate: str) -> Iterator[None]:
        """The hosts send at most so much; `rate` is one of tc-tbf(8)."""
        shape = f"tbf rate {rate} burst 1mb latency 50ms"
        try:
            for host in self.hosts:
                self.run(host, f"tc qdisc replace dev {self.device(host)} root {shape}")
            yield
        finally:
            for host in self.hosts:
                self.run(host, f"tc qdisc del dev {self.device(host)} root", check=False)

    def put(self, host: str, path: str, content: str) -> None:
        subprocess.run(
            ["docker", "exec", "-i", host, "sh", "-c", f"cat > {shlex.quote(path)}"],
            input=content,
            text=True,
            check=True,
        )

    def start(self, host: str, command: str) -> int:
        """Start a workload in its own session, with a PID that is free on all hosts."""
        if host not in self._floors:  # above what any host itself comes to, and apart
            most = int(self.run(host, "cat /proc/sys/kernel/pid_max"))
            self._floors[host] = most * (5 + ALL.index(host)) // 8
        self._floors[host] += _STEP
        return int(self.run(host, f"start-high {self._floors[host]} {command}").split()[-1])

    def take(self, host: str, pid: int) -> None:
        """Have a workload, `sleep`, take this very PID; a later one has its PID as if it had not.

        Else what runs there next would have the PIDs of the next tests' workloads.
        """
        last = self.run(host, "cat /proc/sys/kernel/ns_last_pid")
        taken = int(self.run(host, f"start-high {pid - 1} sleep 1000"))
        self.run(host, f"echo {last} > /proc/sys/kernel/ns_last_pid")
        assert taken == pid, f"PID {pid} is not free on {host}"

    def alive(self, host: str, pid: int) -> bool:
        state = self.run(host, f"sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -c1", False)
        return bool(state) and state not in "ZX"

    def state(self, host: str, pid: int) -> str:
        return self.run(host, f"sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -c1", False)

    def add_address(self, host: str, address: str = SERVICE) -> None:
        length, flags = ("64", "nodad") if ":" in address else ("24", "")
        self.run(host, f"ip addr add {address}/{length} dev {self.device(host)} {flags}")
        # An earlier test may have had it elsewhere.
        self.run("client", f"ip neigh flush to {address} dev {self.device('client')}")

    def device(self, host: str) -> str:
        return self.run(host, "ip -o -4 addr show to 10.77.0.0/24 | awk '{print $2; exit}'")

    def addresses(self, host: str) -> set[str]:
        lines = self.run(host, "ip -o addr show scope global").splitlines()
        return {line.split()[3].partition("/")[0] for line in lines}

    def client(self, program: str, *arguments: object) -> AbstractContextManager[Client]:
        """Run a client program; it must say "ready" itself where it does."""
        return self.program("client", program, *arguments)

    @contextlib.contextmanager
    def program(self, host: str, program: str, *arguments: object) -> Iterator[Client]:
        """The same on any host."""
        self.put(host, f"/run/{program}", (PROGRAMS / program).read_text())
        process = subprocess.Popen(
            ["docker", "exec", "-i", host, "python3", f"/run/{program}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Client(process, program)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def migrate(self, source: str, destination: str, pid: int, *options: str) -> Migration:
        """Run the command as a user would, with --json."""
        process = self.start_migrate(source, destination, pid, *options)
        return self.end_migrate(process)

    def drains(self) -> list[Path]:
        """The journals of drains that were begun here, oldest first."""
        return sorted(Path(self._state, "streamferry/drains").glob("*.jsonl"))

    def start_migrate(
        self, source: str, destination: str, pid: int, *options: str
    ) -> subprocess.Popen[str]:
        return self.start_command(source, destination, "--pid", str(pid), *options)

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        """The command `migrate`, with --json."""
        return self._start("-F", str(SSH_CONFIG), "--json", *arguments)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": self._state},
        )

    def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command `migrate` with --json; its exit status and what it printed."""
        return self._answer(self.start_command(*arguments))

    def ask(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The same of a verb that reaches no host."""
        return self._answer(self._start("--json", *arguments))

    def report(self, *arguments: str) -> dict[str, Any]:
        """What `migrate report` says with --json."""
        status, answer = self.ask("report", *arguments)
        assert status == 0 and answer["error"] is None, answer
        return dict(answer["report"])

    def _answer(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
        output, errors = process.communicate(timeout=200)
        assert output.count("\n") == 1, f"not one line of JSON: {output!r} {errors!r}"
        return process.returncode, json.loads(output)

    def end_migrate(self, process: subprocess.Popen[str], patience: float = 120) -> Migration:
        """Await the command; killed, it has said nothing, and its result is empty."""
        started = time.monotonic()
        output, errors = process.communicate(timeout=patience)
        if process.returncode != -signal.SIGKILL:
            assert output.count("\n") == 1, f"not one line of JSON: {output!r} {errors!r}"
        result = json.loads(output or "{}")
        return Migration(process.returncode, result, errors, started, time.monotonic())

    def leftovers(self, host: str, *, allowed_stopped: tuple[int, ...] = ()) -> list[str]:
        """What a migration that is over must not leave behind on a host."""
        found = []
        tables, images, journals, processes = self.run(host, _LOOK).split(f"{_CUT}\n")
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

    def settle(self, host: str) -> None:
        """Wait until nothing of a migration is left on a host."""
        deadline = time.monotonic() + 5
        while found := self.leftovers(host):
            assert time.monotonic() < deadline, f"left on {host}: {found}"
            time.sleep(0.05)

    def recover(self) -> None:
        """End what a killed orchestrator has left to be told; then nothing is left on a host."""
        for host in self.hosts:
            status, answer = self.command("recover", host)
            assert status == 0, answer
        for host in self.hosts:
            self.settle(host)

    def clear(self) -> None:
        """End every workload, and forget every address and migration, of earlier tests."""
        for host in self.hosts:
            self.run(host, _CLEAR)
        self.run("client", "pkill -KILL -f '[/]run/.*[.]py' || true")
        for path in Path(self._state).iterdir():  # else `recover` would know of earlier tests'
            shutil.rmtree(path)
