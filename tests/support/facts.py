"""Facts of two hosts and a process for which a plan can be made; tests spoil one thing each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from agent.errors import Field
from agent.plan import Plan
from agent.probe.facts import (
    AddressFacts,
    BoundFacts,
    ConnectionFacts,
    DestinationFacts,
    HostFacts,
    ListenerFacts,
    Obstacle,
    OtherSocket,
    ProcessFacts,
    ProcessInfo,
)
from agent.sync.look import SyncFacts, SyncPath
from orchestrator.plan import Options, Refusal, plan
from orchestrator.sync import Seen, Wish

GIB = 1 << 30
ALL_CAPABILITIES = (1 << 41) - 1


def address(text: str, prefixlen: int = 24, device: str = "eth0", **over: Any) -> AddressFacts:
    facts: dict[str, Any] = {
        "address": text,
        "prefixlen": prefixlen,
        "device": device,
        "family": 6 if ":" in text else 4,
        "primary": True,
        "has_secondaries": False,
        "promotes": False,
        "scope": "global",
        "dynamic": False,
    }
    return AddressFacts(**{**facts, **over})  # type: ignore[typeddict-item]


def host(name: str, own: str, own6: str, *more: AddressFacts) -> HostFacts:
    return HostFacts(
        identity=f"boot net:[{name}] pid:[{name}]",
        hostname=name,
        kernel="6.18.4-1-amd64",
        machine="x86_64",
        python="3.13.5",
        uid=0,
        capabilities=ALL_CAPABILITIES,
        missing_capabilities=[],
        cpu_flags=["avx", "avx2", "sse4_2"],
        criu={"path": "/usr/sbin/criu", "version": [4, 2, 1], "problem": None},
        nftables=None,
        sock_diag=None,
        tcp_repair=None,
        raw_socket=None,
        packet_socket=None,
        choose_pid=None,
        userfault=None,
        tables=[],
        memory_available=4 * GIB,
        images={"path": "/run", "tmpfs": True, "free": 2 * GIB, "problem": None},
        addresses=[
            address("127.0.0.1", 8, "lo", scope="host"),
            address("::1", 128, "lo", scope="host"),
            address(own, has_secondaries=bool(more)),
            address(own6, 64),
            address("fe80::1", 64, scope="link"),
            *more,
        ],
        reached=own,
        named=[own, own6],
        gateways=[["10.77.0.1", "eth0"]],
        descriptors=20000,
        processes=40,
        cordon=None,
    )


def info(pid: int, **over: Any) -> ProcessInfo:
    facts: dict[str, Any] = {
        "pid": pid,
        "ppid": 1,
        "comm": "redis-server",
        "threads": [pid, pid + 1],
        "pgid": pid,
        "sid": pid,
        "state": "S",
        "thread_states": "S",
        "tracer": 0,
        "memory": 8 << 20,
        "capabilities": 0,
        "namespaces": [],
        "limits": {"Max open files": 20000},
        "descriptors": 12,
    }
    return ProcessInfo(**{**facts, **over})  # type: ignore[typeddict-item]


def listener(text: str, port: int, **over: Any) -> ListenerFacts:
    facts: dict[str, Any] = {
        "address": text,
        "port": port,
        "family": 6 if ":" in text else 4,
        "v6only": False,
        "backlog": 511,
        "waiting": 0,
        "pid": 5000,
        "fd": 6,
    }
    return ListenerFacts(**{**facts, **over})  # type: ignore[typeddict-item]


def established(
    local: str, remote: str, port: int = 6379, remote_port: int = 40000, state: int = 1
) -> ConnectionFacts:
    family = 6 if ":" in local else 4
    return ConnectionFacts(family, local, port, remote, remote_port, state)


def obstacle(code: str, **fields: Field) -> Obstacle:
    return Obstacle(code=code, fields={"thing": "descriptor 9 of process 5000", **fields})


def bound(text: str, protocol: str = "udp") -> BoundFacts:
    family = 6 if ":" in text else 4
    return BoundFacts(protocol=protocol, address=text, port=514, family=family, pid=5000, fd=7)


def other(text: str, pid: int = 77) -> OtherSocket:
    return OtherSocket(address=text, port=22, state=10, pid=pid, comm="sshd" if pid else "")


@dataclass
class Case:
    """All that the planner is given; `source` and `destination` are the hosts' facts."""

    source: HostFacts = field(
        default_factory=lambda: host(
            "src",
            "10.77.0.11",
            "fd77::11",
            address("10.77.0.100", primary=False),
            address("fd77::100", 64),
        )
    )
    destination: HostFacts = field(default_factory=lambda: host("dst", "10.77.0.12", "fd77::12"))
    process: ProcessFacts = field(
        default_factory=lambda: ProcessFacts(
            pid=5000,
            comm="redis-server",
            cmdline=["redis-server", "--bind", "10.77.0.100"],
            processes=[info(5000)],
            shell_job=False,
            memory=8 << 20,
            files=[],
            unix_names=[],
            obstacles=[],
            connections=[established("10.77.0.100", "10.77.0.13")],
            listeners=[listener("10.77.0.100", 6379)],
            bound=[],
            options=[],
            closing={},
            others=[other("10.77.0.11")],
        )
    )
    found: DestinationFacts = field(
        default_factory=lambda: DestinationFacts(
            taken=[], files=[], ports=[], unix_names=[], limits=[], missing_options=[]
        )
    )
    options: Options = field(default_factory=Options)
    seen: Seen | None = None  # of what is to be brought along

    def judge(self) -> Plan | list[Refusal]:
        facts = copy.deepcopy((self.source, self.destination, self.process, self.found))
        return plan("src", "dst", *facts, self.options, self.seen)

    def bring(self, path: str, *, kind: str = "directory", rsync: str | None = None) -> None:
        """Have a path named with --sync: the kind it is of at the source, and DST's rsync."""
        self.options = replace(self.options, sync=Wish((path,)))
        here = SyncPath(path=path, real=path, kind=kind)
        there = SyncPath(path=path, real=path, kind="missing")
        self.seen = Seen(SyncFacts(rsync=None, paths=[here]), SyncFacts(rsync=rsync, paths=[there]))
