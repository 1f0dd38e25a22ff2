"""The lab's hosts as tests use them: commands, workloads, clients, migrations, leftovers."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from orchestrator.chaos.command import Command
from orchestrator.chaos.command import Ended as Migration
from orchestrator.chaos.hosts import CORDON, JOURNALS, Hosts, add_address, until
from orchestrator.chaos.network import HEARD, TABLE
from orchestrator.chaos.workloads import PROGRAMS as OF_CHAOS
from orchestrator.chaos.workloads import Client

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests/lab/programs"
SSH_CONFIG = ROOT / "lab/ssh_config"
SERVICE = "10.77.0.100"
SERVICE6 = "fd77::100"
HOSTS = ("src", "dst")
SPARE = "spare"
ALL = (*HOSTS, SPARE)

__all__ = ["ALL", "HOSTS", "JOURNALS", "SERVICE", "Client", "Lab", "Migration", "until"]

_WORKLOADS = (
    "[r]edis-server|[n]ginx|[b]yte_server|[m]any_server|[s]leep 1000|[m]emcached|"
    "/tmp/[a]syncio_echo|/tmp/[w]orker[.]py"
)
_CLEAR = f"""
pkill -KILL -f '{_WORKLOADS}'
pkill -KILL -f 'agent[.]guardian|streamferry-[a]gent'
rm -rf /run/streamferry {JOURNALS} {CORDON} /run/lab-* /srv/lab-*
nft list tables | grep -E 'streamferry|{TABLE}|{HEARD}' | while read -r table; do
    nft delete $table
done
ip -o addr | while read -r _ device _ address _; do
    case $address in
    10.77.0.1[0-9][0-9]/*|{SERVICE6}/*)
        case $address in *:*) name="[${{address%/*}}]" ;; *) name=${{address%/*}} ;; esac
        ss -HKta src "$name"  # else what ended without an answer waits on
        ip addr del "$address" dev "$device" ;;
    esac
done
true
"""


class Lab(Hosts):
    """The containers that `make lab` has brought up. `hosts` are those that a test uses."""

    def __init__(self) -> None:
        super().__init__(*ALL, "client")
        self.hosts: tuple[str, ...] = HOSTS
        self._state = tempfile.mkdtemp(prefix="lab-state-")  # `migrate list` has it here
        weakref.finalize(self, shutil.rmtree, self._state, True)
        self._command = Command(SSH_CONFIG, self._state)

    def take(self, host: str, pid: int) -> None:
        """Have a workload, `sleep`, take this very PID; a later one has its PID as if it had not.

        Else what runs there next would have the PIDs of the next tests' workloads.
        """
        last = self.run(host, "cat /proc/sys/kernel/ns_last_pid")
        taken = int(self.run(host, f"start-high {pid - 1} sleep 1000"))
        self.run(host, f"echo {last} > /proc/sys/kernel/ns_last_pid")
        assert taken == pid, f"PID {pid} is not free on {host}"

    def add_address(self, host: str, address: str = SERVICE) -> None:
        add_address(self, host, address, "client")

    def client(self, program: str, *arguments: object) -> AbstractContextManager[Client]:
        """Run a client program; it must say "ready" itself where it does."""
        return self.program("client", program, *arguments)

    @contextlib.contextmanager
    def program(self, host: str, program: str, *arguments: object) -> Iterator[Client]:
        """The same on any host."""
        where = OF_CHAOS if (OF_CHAOS / program).exists() else PROGRAMS
        client = Client(self, host, where / program, *arguments)
        try:
            yield client
        finally:
            client.end()

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
        return self._command.start(*arguments)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return self._command.spawn(*arguments)

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
        return self._command.end(process, patience)

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
