"""One experiment in the lab: what it has begun, and how all of that is undone again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from orchestrator.chaos import network
from orchestrator.chaos.command import Command, Ended
from orchestrator.chaos.errors import ActionFailed, LabBusy, LabHostUnknown, NoSession
from orchestrator.chaos.experiment import Setup
from orchestrator.chaos.hosts import CORDON, RUNS, Hosts, add_address, drop_address
from orchestrator.chaos.workloads import Workload, start_redis

_ENDS = 30.0  # seconds for a command that was interrupted
_CLEAN = 8.0  # seconds for the hosts to come to their end by themselves
NOTHING = "nothing"


class Session:
    """What one experiment has begun."""

    def __init__(self, setup: Setup, ssh_config: Path) -> None:
        """Touches nothing. Raises `ActionFailed`, `LabDown`, `LabBusy` and `LabHostUnknown`."""
        if not ssh_config.is_file():
            raise ActionFailed(detail=f"there is no ssh configuration {ssh_config}")
        self.setup = setup
        self.hosts = Hosts(*setup.hosts, setup.client)
        self._refuse_what_is_busy()
        self._state = tempfile.mkdtemp(prefix="streamferry-chaos-")
        self.command = Command(ssh_config, self._state)
        self.workloads: dict[str, Workload] = {}
        self.process: subprocess.Popen[str] | None = None  # the command that is under way
        self.ended: list[Ended] = []
        self.unexpected: list[str] = []
        self._undo: dict[tuple[str, ...], Callable[[], object]] = {}

    def _refuse_what_is_busy(self) -> None:
        for host in self.setup.hosts:
            there = self.hosts.addresses(host) & {str(a) for a in self.setup.workloads.values()}
            if there:
                raise LabBusy(detail=f"{host} has the address {', '.join(sorted(there))}")
            if found := self.hosts.leftovers(host):
                raise LabBusy(detail=f"{host} has {found[0]}")
            if self.hosts.run(host, f"ls {CORDON} 2>/dev/null || true"):
                raise LabBusy(detail=f"{host} is cordoned")

    def begin(self) -> None:
        """Start the workloads, and their clients."""
        client = self.setup.client
        for name, address in self.setup.workloads.items():
            one = self.workloads[name] = Workload(name, str(address))
            self._add_address(self.setup.source, one.address)
            one.pid = start_redis(self.hosts, self.setup.source, one.address, client)
            one.load(self.hosts, client)

    def _add_address(self, host: str, address: str) -> None:
        add_address(self.hosts, host, address, self.setup.client)

    # --- what actions and probes ask for

    def host(self, name: str) -> str:
        """A host, by its name or its role. Raises `LabHostUnknown`."""
        found = {"source": self.setup.source, "destination": self.setup.destination}.get(name, name)
        if found not in self.hosts.names:
            raise LabHostUnknown(host=name, known=", ".join(self.hosts.names))
        return found

    def party(self, name: str) -> str:
        """The same, or the orchestrator."""
        return name if name == network.ORCHESTRATOR else self.host(name)

    def workload(self, name: str) -> Workload:
        """Raises `ActionFailed`."""
        if name not in self.workloads:
            known = ", ".join(self.workloads)
            raise ActionFailed(detail=f"there is no workload {name}; it is one of {known}")
        return self.workloads[name]

    @property
    def up(self) -> list[str]:
        return [host for host in self.setup.hosts if self.hosts.up(host)]

    def running_at(self, workload: Workload) -> list[str]:
        """The hosts where a copy of it runs."""
        return [h for h in self.up if self.hosts.state(h, workload.pid) in RUNS]

    def answering(self, workload: Workload) -> list[str]:
        """The hosts that have its address."""
        return [host for host in self.up if workload.address in self.hosts.addresses(host)]

    def disturbed(self, *key: str, undo: Callable[[], object]) -> None:
        """Something of this name is to be undone: as a rollback, or at the end."""
        self._undo[key] = undo

    def undo(self, *key: str) -> None:
        """Undo it now. Raises `ActionFailed` where nothing of this name was done."""
        if key not in self._undo:
            raise ActionFailed(detail=f"{' '.join(key)}: nothing of it is to be undone")
        self._undo.pop(key)()

    def start(self, *arguments: str) -> None:
        """Start the command. Raises `ActionFailed` where one is under way."""
        if self.process is not None:
            raise ActionFailed(detail="a command is under way: await_command comes first")
        self.process = self.command.start(*arguments)

    def under_way(self) -> subprocess.Popen[str]:
        """Raises `ActionFailed`."""
        if self.process is None:
            raise ActionFailed(detail="no command is under way")
        return self.process

    def end(self, patience: float) -> Ended:
        """Await the command that is under way. Raises `ActionFailed`."""
        process = self.under_way()
        try:
            ended = self.command.end(process, patience)
        except subprocess.TimeoutExpired:
            raise ActionFailed(detail=f"the command has not ended in {patience:g} s") from None
        self.process = None
        self.ended.append(ended)
        return ended

    def left(self) -> list[str]:
        """What is left on the hosts of migrations that are over."""
        return [f"{host}: {one}" for host in self.up for one in self.hosts.leftovers(host)]

    def clean(self, seconds: float) -> bool:
        """Whether nothing is left, within so long."""
        deadline = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    # --- the end

    def restore(self) -> list[str]:
        """Undo all that disturbs, the last first; what could not be."""
        problems = []
        while self._undo:
            key, undo = self._undo.popitem()
            try:
                undo()
            except Exception as error:
                problems.append(f"{' '.join(key)}: {error}")
        return problems

    def close(self) -> list[str]:
        """Undo and end all; what could not be, or is left. Idempotent."""
        problems: list[str] = []
        for step in (
            self._end_command, self.restore, self._recover, self._end_workloads, self.left
        ):  # fmt: skip
            try:
                problems += step() or []
            except Exception as error:
                problems.append(str(error))
        shutil.rmtree(self._state, ignore_errors=True)
        return problems

    def _end_command(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it rolls back, or comes to its end
        try:
            process.communicate(timeout=_ENDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def _recover(self) -> None:
        for host in self.setup.hosts:
            if self.hosts.run(host, f"ls {CORDON} 2>/dev/null || true"):
                self.command.run("uncordon", host)
        if self.clean(_CLEAN):
            return
        for host in self.setup.hosts:
            self.command.run("recover", host)
        if not self.clean(_CLEAN):
            for host in self.setup.hosts:
                self.command.run("doctor", host, "--fix")
            self.clean(_CLEAN)

    def _end_workloads(self) -> None:
        for one in self.workloads.values():
            for client in one.clients:
                client.end()
        # Apart: else the shell that is to remove them is one of those that are named.
        self.hosts.run(self.setup.client, "pkill -KILL -f '[/]run/redis_.*[.]py'", check=False)
        self.hosts.run(self.setup.client, "rm -f /run/redis_*.py")
        for one in self.workloads.values():
            for host in self.setup.hosts:
                if (
                    one.pid
                    and self.hosts.run(host, f"cat /proc/{one.pid}/comm", False) == "redis-server"
                ):
                    self.hosts.run(host, f"kill -KILL {one.pid}")
                if one.address in self.hosts.addresses(host):
                    drop_address(self.hosts, host, one.address)
        self.workloads.clear()


_current: Session | None = None
failure: AgentError | None = None  # why the last one could not be begun, or was ended early
uncleared: list[str] = []  # what the last one has left


def current() -> Session:
    """That of the experiment that is run. Raises `NoSession`."""
    if _current is None:
        raise NoSession()
    return _current


def is_open() -> bool:
    """Whether one was begun, and is not closed."""
    return _current is not None


def open_session(setup: Setup, ssh_config: Path) -> None:
    """Begin one. Raises `AgentError`; `close_session` then ends what was begun."""
    global _current
    try:
        _current = Session(setup, ssh_config)
        _current.begin()
    except AgentError as error:
        failed(error)
        raise


def forget() -> None:
    """What became of the last one."""
    global failure
    failure = None
    uncleared.clear()


def failed(error: AgentError) -> None:
    """The experiment ends by this."""
    global failure
    failure = failure or error


def close_session() -> None:
    """End it, and all that it has begun. Signals wait so long in vain. Idempotent."""
    global _current
    if _current is None:
        return
    with undisturbed():
        uncleared.extend(_current.close())
        _current = None


@contextlib.contextmanager
def undisturbed() -> Any:
    """Ignore the signals that end a program."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
