"""What runs on this host and by what it can be named: for whoever looks for what to move.

Only what a selector may ask for is told; of a process's environment nothing but its labels, which
stand in STREAMFERRY_LABELS ("tier=cache,app=web") when it is started.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypedDict

from agent.errors import ProtocolError, shown
from agent.kernel import proc, sockdiag, uapi

MAX_PID_FILES = 256
MAX_PROCESSES = 1 << 16
LABELS = "STREAMFERRY_LABELS"
_MAX_COMMAND = 4096  # characters
_MAX_LABELS = 64
_LABEL = re.compile(r"([A-Za-z0-9._/-]{1,63})=([A-Za-z0-9._/-]{0,63})")
_OURS = ("streamferry-agent", "from agent.guardian import main")  # agents and guardians at work


class EndpointFacts(NamedTuple):
    """Where a process listens. On the wire: a list."""

    address: str  # "0.0.0.0" or "::" for a wildcard
    port: int


class RunningProcess(TypedDict):
    pid: int
    ppid: int
    sid: int
    born: int  # clock ticks since the boot
    comm: str
    command: str  # the command line, its words joined by blanks
    unit: str  # systemd's, "" without
    labels: dict[str, str]
    listening: list[EndpointFacts]
    addresses: list[str]  # local ones of its TCP sockets; no wildcard, no loopback
    memory: int  # bytes resident


class PidFileFacts(TypedDict):
    path: str
    pid: int  # 0 where it names no process
    problem: str  # "" or why not


class Running(TypedDict):
    """The answer: every process of user space but the agents and what is above this one."""

    processes: list[RunningProcess]
    pid_files: list[PidFileFacts]


def look(pid_files: list[str]) -> Running:
    """All of them. Raises `ProtocolError` where a path is none."""
    if len(pid_files) > MAX_PID_FILES:
        raise ProtocolError(detail=f"{len(pid_files)} PID files; {MAX_PID_FILES} at most")
    for path in pid_files:
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise ProtocolError(detail=f"{shown(path)} is no path of a PID file")
    sockets = _sockets()
    away = set(proc.ancestors(os.getpid()))
    processes = []
    for pid in sorted(proc.pids())[:MAX_PROCESSES]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            one = None if pid in away else _process(pid, sockets)
            if one is not None:
                processes.append(one)
    return Running(processes=processes, pid_files=[_pid_file(path) for path in pid_files])


def _process(pid: int, sockets: dict[int, _Socket]) -> RunningProcess | None:
    found = proc.stat(pid)
    if found.flags & proc.PF_KTHREAD or found.state in "ZX":
        return None
    command = " ".join(proc.cmdline(pid)).strip() or found.comm
    if any(mark in command for mark in _OURS):
        return None
    status = proc.status(pid)
    own = list(_own(pid, sockets))
    listening = [EndpointFacts(one.address, one.port) for one in own if one.listens]
    return RunningProcess(
        pid=pid,
        ppid=found.ppid,
        sid=found.sid,
        born=proc.born(pid),
        comm=found.comm,
        command=command[:_MAX_COMMAND],
        unit=_unit(pid),
        labels=_labels(pid),
        listening=list(dict.fromkeys(listening)),
        addresses=list(dict.fromkeys(one.address for one in own if one.public)),
        memory=sum(proc.kibibytes(status.get(name, "0 kB")) for name in ("RssAnon", "RssShmem")),
    )


class _Socket(NamedTuple):
    address: str
    port: int
    listens: bool
    public: bool  # neither wildcard nor loopback


def _sockets() -> dict[int, _Socket]:
    """Inode -> TCP socket of this network namespace that a process has."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for one in sockdiag.tcp(family):
            if one.inode and one.state != uapi.TCP_CLOSE:
                address = ipaddress.ip_address(one.local)
                if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
                    address = address.ipv4_mapped
                public = not address.is_unspecified and not address.is_loopback
                listens = one.state == uapi.TCP_LISTEN
                found[one.inode] = _Socket(str(address), one.local_port, listens, public)
    return found


def _own(pid: int, sockets: dict[int, _Socket]) -> Iterator[_Socket]:
    for link in proc.descriptors(pid).values():
        if link.startswith("socket:["):
            one = sockets.get(int(link[8:-1]))
            if one is not None:
                yield one


def _unit(pid: int) -> str:
    """The service in the process's path of cgroups (systemd.service(5)); "" without."""
    for line in proc.lines(f"/proc/{pid}/cgroup"):
        for part in reversed(line.split(":", 2)[-1].split("/")):
            if part.endswith(".service"):
                return part
    return ""


def _labels(pid: int) -> dict[str, str]:
    """Those it was started with; a program that writes over its environment has lost them."""
    for word in proc.read(f"/proc/{pid}/environ").split("\0"):
        name, _, value = word.partition("=")
        if name == LABELS:
            return _read_labels(value.split(","))
    return {}


def _read_labels(words: Iterable[str]) -> dict[str, str]:
    found = {}
    for word in words:
        if match := _LABEL.fullmatch(word.strip()):
            found[match[1]] = match[2]
        if len(found) == _MAX_LABELS:
            break
    return found


def _pid_file(path: str) -> PidFileFacts:
    """The process that a file names; the file is not waited for, should it be a pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 64).decode(errors="replace").strip()
        finally:
            os.close(fd)
    except OSError as error:
        return PidFileFacts(path=path, pid=0, problem=error.strerror or str(error))
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 1 << 22:
        return PidFileFacts(path=path, pid=0, problem="it holds no PID")
    pid = int(text)
    if not os.path.exists(f"/proc/{pid}"):
        return PidFileFacts(path=path, pid=0, problem=f"process {pid} has ended")
    return PidFileFacts(path=path, pid=pid, problem="")
