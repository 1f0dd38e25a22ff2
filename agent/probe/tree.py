"""What a process tree consists of, and what of it could not move: the source's facts."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.freeze import children
from agent.journal import DIRECTORY
from agent.kernel import proc
from agent.probe import mappings
from agent.probe.descriptors import Descriptors
from agent.probe.errors import (
    AgentItself,
    KernelThread,
    NoSuchProcess,
    NotAProcess,
    NotPermitted,
    Zombie,
)
from agent.probe.facts import FileFacts, ProcessFacts, ProcessInfo
from agent.probe.files import Files
from agent.probe.neighbours import Neighbours
from agent.probe.obstacles import Obstacles
from agent.probe.sockets import Sockets
from agent.unended import refuse_looking

_GONE = (FileNotFoundError, ProcessLookupError)
_MAX_ARGUMENTS = 64
_MAX_ARGUMENT = 4096  # characters


def look(pid: int, journals: Path = DIRECTORY) -> ProcessFacts:
    """The facts of the tree of `pid`. Raises one of the errors of `agent.probe.errors`.

    Where a migration of one of its processes has not ended (`agent.unended`), that is raised before
    anything else is said: each other advice may make a second copy run, or end the only one.
    """
    try:
        if pid > 0:
            refuse_looking(list(_walk(pid)), journals)
        _check_root(pid)
        return _Look(pid).facts()
    except _GONE:
        raise NoSuchProcess(pid=pid) from None
    except PermissionError as error:
        detail = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise NotPermitted(pid=pid, detail=detail) from error


def _check_root(pid: int) -> None:
    if pid < 1:
        raise NoSuchProcess(pid=pid)
    status = proc.status(pid)
    if int(status["Tgid"]) != pid:
        raise NotAProcess(pid=pid, process=int(status["Tgid"]))
    found = proc.stat(pid)
    if found.flags & proc.PF_KTHREAD:
        raise KernelThread(pid=pid, comm=found.comm)
    if pid in proc.ancestors(os.getpid()):
        raise AgentItself(pid=pid, comm=found.comm)
    if found.state in "ZX" and len(proc.threads(pid)) < 2:
        raise Zombie(pid=pid, comm=found.comm)


class _Look:
    """One look at one tree."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._pids = list(_walk(root))
        self._files = Files()
        self._obstacles = Obstacles()
        self._descriptors = Descriptors(self._pids, self._files, self._obstacles)
        self._sockets = Sockets(self._obstacles)

    def facts(self) -> ProcessFacts:
        own = proc.namespaces(os.getpid())
        processes = []
        for pid in self._pids:
            try:
                processes.append(self._process(pid, own))
            except _GONE:
                if pid == self._root:
                    raise  # a child may end while we look, the root may not
        neighbours = Neighbours(
            self._pids, self._sockets, self._descriptors, self._files, self._obstacles
        )
        with _pidfds(self._pids) as pidfds:
            if not any("net" in one["namespaces"] for one in processes):
                self._sockets.scan(self._descriptors.sockets, pidfds)
                neighbours.scan(pidfds)
        root = processes[0]
        return ProcessFacts(
            pid=self._root,
            comm=root["comm"],
            cmdline=_arguments(self._root),
            processes=processes,
            shell_job=root["sid"] != self._root,
            memory=sum(one["memory"] for one in processes),
            files=self._files.list(),
            unix_names=neighbours.unix_names,
            obstacles=self._obstacles.found,
            connections=self._sockets.connections,
            listeners=self._sockets.listeners,
            bound=self._sockets.bound,
            options=list(self._sockets.options),
            closing=dict(neighbours.closing),
            others=neighbours.others,
        )

    def _process(self, pid: int, own: dict[str, str]) -> ProcessInfo:
        found, status = proc.stat(pid), proc.status(pid)
        threads, states, tracer = _threads(pid)
        info = ProcessInfo(
            pid=pid,
            ppid=found.ppid,
            comm=found.comm,
            threads=threads,
            pgid=found.pgid,
            sid=found.sid,
            state=found.state,
            thread_states=states,
            tracer=tracer,
            memory=sum(
                proc.kibibytes(status.get(name, "0 kB"))
                for name in ("RssAnon", "RssShmem", "VmSwap")
            ),
            capabilities=int(status["CapPrm"], 16),
            namespaces=[],
            limits={},
            descriptors=0,
        )
        if found.state in "ZX":
            return info  # a child that has ended: nothing but its PID moves
        theirs = proc.namespaces(pid)
        info["namespaces"] = [kind for kind in own if theirs.get(kind) != own[kind]]
        info["limits"] = proc.hard_limits(pid)
        try:
            resource.prlimit(pid, resource.RLIMIT_CORE)  # as CRIU will
        except PermissionError:
            user = int(status["Uid"].split()[0])
            self._obstacles.add("limits-unreadable", pid=pid, comm=found.comm, user=user)
        if "mnt" not in info["namespaces"]:
            _paths(pid, self._files)
            info["descriptors"] = self._descriptors.scan(pid)
            mappings.scan(pid, self._files, self._obstacles)
        return info


def _paths(pid: int, files: Files) -> None:
    """Note its program and its directories."""
    for name, use in (
        ("exe", "program"),
        ("cwd", "working directory"),
        ("root", "root directory"),
    ):
        path = os.readlink(f"/proc/{pid}/{name}")
        if not path.endswith(proc.DELETED):
            files.add(path, pid, use)


def files(pids: Sequence[int]) -> list[FileFacts]:
    """The files that these processes need now; what of them cannot move is passed over."""
    found, obstacles = Files(), Obstacles()
    descriptors = Descriptors(list(pids), found, obstacles)
    for pid in pids:
        with contextlib.suppress(*_GONE):
            _paths(pid, found)
            descriptors.scan(pid)
            mappings.scan(pid, found, obstacles)
    return found.list()


def facts_of(pid: int, paths: Sequence[str]) -> list[FileFacts]:
    """The same of files that a process has opened since."""
    found = Files()
    for path in paths:
        found.add(path, pid, "opened since the check", content=True)
    return found.list()


def _arguments(pid: int) -> list[str]:
    """The command line, for show; one that the program rewrote has a tail of empty words."""
    words = proc.cmdline(pid)
    while words and not words[-1]:
        words.pop()
    return [one[:_MAX_ARGUMENT] for one in words[:_MAX_ARGUMENTS]]


def _walk(root: int) -> Iterator[int]:
    """The PIDs of the tree, root first, parents before children."""
    queue, seen = [root], {root}
    for pid in queue:
        yield pid
        for child in children(pid):
            if child not in seen:
                seen.add(child)
                queue.append(child)


def _threads(pid: int) -> tuple[list[int], str, int]:
    """Thread IDs, the letters of their states, and the PID of a debugger of any (or 0)."""
    threads, states, tracer = proc.threads(pid), set(), 0
    for tid in threads:
        with contextlib.suppress(*_GONE):
            status = proc.status(pid, tid)
            states.add(status["State"][0])
            tracer = tracer or int(status["TracerPid"])
    return threads, "".join(sorted(states)), tracer


@contextlib.contextmanager
def _pidfds(pids: list[int]) -> Iterator[dict[int, int]]:
    found: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                found[pid] = os.pidfd_open(pid)
        yield found
    finally:
        for fd in found.values():
            os.close(fd)
