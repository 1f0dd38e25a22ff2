"""Probes of chaos experiments: what a steady-state hypothesis is made of (docs/chaos.md)."""

from __future__ import annotations

import time
from typing import Any

from orchestrator.chaos import network
from orchestrator.chaos.session import NOTHING, current
from orchestrator.chaos.workloads import Workload

__all__ = [
    "answering_hosts", "bytes_lost", "client_errors", "leftovers", "live_copies", "packets_said",
    "reported_blackout", "stall", "unexpected",
]  # fmt: skip


def _meant(workload: str | None) -> list[Workload]:
    session = current()
    return [session.workload(workload)] if workload else list(session.workloads.values())


def live_copies(workload: str = "redis") -> int:
    """How many copies of a workload run, on all hosts together: not frozen, nor stopped."""
    session = current()
    return len(session.running_at(session.workload(workload)))


def answering_hosts(workload: str = "redis") -> int:
    """How many hosts have the address of a workload, and answer for it."""
    session = current()
    return len(session.answering(session.workload(workload)))


def client_errors(workload: str | None = None) -> str:
    """What the clients have seen: resets, wrong replies, connections that hang. "nothing" is due.

    Each connection has to get on once more before this is said.
    """
    seen = [error for report in _reports(workload) for error in report["errors"]]
    return "; ".join(seen) or NOTHING


def bytes_lost(workload: str | None = None) -> int:
    """How many bytes of downloads did not come, after each was awaited to its end, and compared."""
    return sum(int(report.get("lost", 0)) for report in _reports(workload))


def stall(workload: str | None = None) -> float:
    """The longest time, in seconds, that a client has waited for a reply."""
    worst = [float(one.get("worst_stall_ms", 0.0)) for one in _reports(workload)]
    return round(max(worst, default=0.0) / 1000, 3)


def _reports(workload: str | None) -> list[dict[str, Any]]:
    return [client.report() for one in _meant(workload) for client in one.clients]


def leftovers(within: float = 10) -> str:
    """What migrations that are over have left on the hosts, after so many seconds; "nothing" is
    due."""
    session = current()
    deadline = time.monotonic() + within
    while found := session.left():
        if time.monotonic() > deadline:
            return "; ".join(found)
        time.sleep(0.1)
    return NOTHING


def packets_said(host: str) -> int:
    """How many packets have left a host in the name of a workload since `count_packets`."""
    session = current()
    return network.counted(session.hosts, session.host(host))


def reported_blackout() -> float:
    """The blackout that the last migration has told of, in seconds; 0 before."""
    ended = current().ended
    return round(float(ended[-1].result.get("blackout_ms", 0.0)) / 1000, 3) if ended else 0.0


def unexpected() -> str:
    """What came to something else than an action has expected; "nothing" is due."""
    return "; ".join(current().unexpected) or NOTHING
