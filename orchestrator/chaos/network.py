"""Cuts, losses and rates between named parties of the lab, by nftables, in silence.

Parties are the migration's `source` and `destination`, any host by its name, and `orchestrator`,
which is all that comes in by SSH. What is done is done at both parties' hosts, in a table of its
own, before the network lock of a migration sees a packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from orchestrator.chaos.hosts import Hosts

ORCHESTRATOR = "orchestrator"
TABLE, HEARD = "chaos_cut", "chaos_heard"
RESET = "tcp flags & rst == 0 reject with tcp reset"  # else it would end the resets, too
_SSH = 22  # where only the orchestrator comes in
_BURST = 256  # KiB that pass at once under a rate


def verdict(percent: float = 100.0, rate_kib: int = 0) -> str:
    """The end of a rule: drop all, so many of a hundred packets, or what is over a rate."""
    if rate_kib:
        return f"limit rate over {rate_kib} kbytes/second burst {_BURST} kbytes drop"
    if percent < 100:
        return f"numgen random mod 10000 < {round(percent * 100)} drop"
    return "drop"


def rules(other: Iterable[str] | None, then: str) -> list[str]:
    """For a host: what comes from and goes to `other`'s addresses; None: the orchestrator."""
    if other is None:
        return [
            f"add rule inet {TABLE} in tcp dport {_SSH} {then}",
            f"add rule inet {TABLE} out tcp sport {_SSH} {then}",
        ]
    return [
        f"add rule inet {TABLE} {chain} {'ip6' if ':' in address else 'ip'} {side} {address} {then}"
        for address in other
        for chain, side in (("in", "saddr"), ("out", "daddr"))
    ]


def disturb(
    hosts: Hosts, parties: Iterable[str], then: str, more: Mapping[str, Iterable[str]] | None = None
) -> list[str]:
    """Do so between each two neighbours of `parties`, host names or `ORCHESTRATOR`.

    `more`: addresses beside its own that a host has. Returns the hosts that have a table now.
    """
    scripts: dict[str, list[str]] = {}
    for pair in pairwise(parties):
        for host, other in (pair, pair[::-1]):
            if host == ORCHESTRATOR:
                continue
            theirs = None
            if other != ORCHESTRATOR:
                theirs = (*hosts.own_addresses(other), *(more or {}).get(other, ()))
            scripts.setdefault(host, []).extend(rules(theirs, then))
    for host, lines in scripts.items():
        add(hosts, host, [
            f"add table inet {TABLE}",
            f"add chain inet {TABLE} in {{ type filter hook input priority -400; }}",
            f"add chain inet {TABLE} out {{ type filter hook output priority -400; }}",
            *lines,
        ])  # fmt: skip
    return list(scripts)


def add(hosts: Hosts, host: str, lines: Iterable[str]) -> None:
    """In one transaction."""
    hosts.run(host, "nft -f - <<'END'\n" + "\n".join(lines) + "\nEND\n")


def heal(hosts: Hosts, host: str, table: str = TABLE) -> None:
    """Undo it at a host. Idempotent."""
    hosts.run(host, f"nft delete table inet {table}", check=False)


def count(hosts: Hosts, host: str, address: str) -> None:
    """From now on count the packets that leave a host in the name of an address."""
    add(hosts, host, [
        f"add table inet {HEARD}",
        f"add counter inet {HEARD} said",
        f"add chain inet {HEARD} out {{ type filter hook postrouting priority 300; }}",
        f"add rule inet {HEARD} out {'ip6' if ':' in address else 'ip'} saddr {address} "
        "counter name said",
    ])  # fmt: skip


def counted(hosts: Hosts, host: str) -> int:
    """How many there were; 0 where nobody counts."""
    told = hosts.run(host, f"nft list counter inet {HEARD} said", check=False).split()
    return int(told[told.index("packets") + 1]) if "packets" in told else 0
