"""Cuts between named parties of a migration: nothing gets through, and nobody is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from orchestrator.chaos import network
from orchestrator.chaos.network import ORCHESTRATOR
from tests.support.lab import HOSTS, Lab

CUTS = {
    "the agents": ("source", "destination"),
    "orchestrator and source": (ORCHESTRATOR, "source"),
    "orchestrator and destination": (ORCHESTRATOR, "destination"),
    "all three": ("source", "destination", ORCHESTRATOR, "source"),
}


@contextlib.contextmanager
def cut(lab: Lab, name: str, source: str, destination: str) -> Iterator[None]:
    """Cut the parties of `CUTS[name]` apart, where `source` and `destination` are these hosts."""
    hosts = {"source": source, "destination": destination}
    try:
        network.disturb(lab, [hosts.get(one, one) for one in CUTS[name]], network.verdict())
        yield
    finally:
        for host in HOSTS:
            network.heal(lab, host)
