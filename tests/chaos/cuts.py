"""Cuts between named parties of the lab: nothing gets through, and nobody is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.lab import HOSTS, Lab

SOURCE_AGENT, DESTINATION_AGENT, ORCHESTRATOR = "source", "destination", "orchestrator"
AGENTS = (SOURCE_AGENT, DESTINATION_AGENT)
CUTS = {
    "the agents": (AGENTS,),
    "orchestrator and source": ((ORCHESTRATOR, SOURCE_AGENT),),
    "orchestrator and destination": ((ORCHESTRATOR, DESTINATION_AGENT),),
    "all three": (AGENTS, (ORCHESTRATOR, SOURCE_AGENT), (ORCHESTRATOR, DESTINATION_AGENT)),
}
_TABLE = "chaos_cut"
ADDRESSES = {"src": ("10.77.0.11", "fd77::11"), "dst": ("10.77.0.12", "fd77::12")}
_SSH = 22  # where only the orchestrator comes in


def _rules(host: str, other: str) -> list[str]:
    """Drop at `host` what comes from and goes to `other`: a host, or the orchestrator."""
    if other == ORCHESTRATOR:
        return [f"add rule inet {_TABLE} in tcp dport {_SSH} drop",
                f"add rule inet {_TABLE} out tcp sport {_SSH} drop"]  # fmt: skip
    v4, v6 = ADDRESSES[other]
    return [
        f"add rule inet {_TABLE} {chain} {family} {side} {address} drop"
        for chain, side in (("in", "saddr"), ("out", "daddr"))
        for family, address in (("ip", v4), ("ip6", v6))
    ]


@contextlib.contextmanager
def cut(lab: Lab, name: str, source: str, destination: str) -> Iterator[None]:
    """Cut the parties of `CUTS[name]` apart, where `source` and `destination` are these hosts."""
    hosts = {SOURCE_AGENT: source, DESTINATION_AGENT: destination}
    scripts: dict[str, list[str]] = {}
    for one, other in CUTS[name]:
        host = hosts.get(one) or hosts[other]  # the orchestrator's end is cut at the host
        scripts.setdefault(host, []).extend(_rules(host, hosts[other] if one in hosts else one))
    try:
        for host, rules in scripts.items():
            lab.run(host, "; ".join(f"nft '{one}'" for one in [
                f"add table inet {_TABLE}",
                f"add chain inet {_TABLE} in {{ type filter hook input priority -400; }}",
                f"add chain inet {_TABLE} out {{ type filter hook output priority -400; }}",
                *rules,
            ]))  # fmt: skip
        yield
    finally:
        heal(lab)


def heal(lab: Lab) -> None:
    for host in HOSTS:
        lab.run(host, f"nft delete table inet {_TABLE}", check=False)
