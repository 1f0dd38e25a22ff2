"""Reads the network locks of this host: our tables, and those of CRIU.

CRIU locks a dumped process's connections, and a whole network namespace where it dumps that, with
nftables: a table `inet CRIU-ID` (nftables_get_table() in criu/netfilter.c; ID is a PID up to 4.0, a
name of the run since 4.1); or with iptables: a rule for each connection that drops what does not
have the mark 0xC114 (SOCCR_MARK in soccr/soccr.h), or a chain `CRIU`
(iptables_network_lock_internal() in criu/net.c).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from agent.leftovers.seen import ForeignLock
from agent.netlock.apply import Nftables
from agent.netlock.render import TABLE_PREFIX

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CRIU_TABLE = re.compile(r"CRIU-[\w.-]{1,100}")
_CRIU_RULE = re.compile(r"-A (?:INPUT|OUTPUT) .*--mark 0xc114.* -j DROP", re.IGNORECASE)
_TIMEOUT = 10  # seconds for iptables-save, which may wait for another one


def tables() -> tuple[list[str], list[ForeignLock]]:
    """Our tables by name, and CRIU's. Raises `LockError`, `NftablesMissing`."""
    nftables = Nftables()
    try:
        lines = nftables.run("list tables\n").splitlines()
    finally:
        nftables.close()
    ours, theirs = [], []
    for line in lines:
        words = line.split()
        if len(words) != 3 or words[:2] != ["table", "inet"]:
            continue
        if words[2].startswith(TABLE_PREFIX):
            ours.append(words[2])
        elif _CRIU_TABLE.fullmatch(words[2]):
            found = ForeignLock(f"table inet {words[2]}", f"nft delete table inet {words[2]}")
            theirs.append(found)
    return ours, theirs


def iptables_locks() -> list[ForeignLock]:
    """CRIU's locks made with iptables, of either kind (nft and legacy)."""
    found = []
    for name in ("iptables", "ip6tables"):
        for kind in ("nft", "legacy"):
            if kind == "legacy" and not _has_legacy_tables(name):
                continue  # to ask for them would load them
            if (path := shutil.which(f"{name}-{kind}-save", path=_PATH)) is not None:
                found += rules(f"{name}-{kind}", _saved(path))
    return found


def _has_legacy_tables(name: str) -> bool:
    file = "ip_tables_names" if name == "iptables" else "ip6_tables_names"
    try:
        return bool(Path("/proc/thread-self/net", file).read_text().strip())
    except OSError:
        return False


def _saved(path: str) -> str:
    try:
        done = subprocess.run(
            [path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            env={"PATH": _PATH},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def rules(program: str, saved: str) -> list[ForeignLock]:
    """CRIU's locks in what `iptables-save` printed. Pure."""
    lines = saved.splitlines()
    found = []
    if any(line.startswith(":CRIU ") for line in lines):
        jumps = [line for line in lines if line.startswith("-A ") and line.endswith("-j CRIU")]
        steps = [f"{program} -D{line[2:]}" for line in jumps]
        steps += [f"{program} -F CRIU", f"{program} -X CRIU"]
        found.append(ForeignLock(f"chain CRIU of {program}", "; ".join(steps)))
    dropping = [line for line in lines if _CRIU_RULE.fullmatch(line)]
    if dropping:
        name = f"{len(dropping)} rules with CRIU's mark in {program}"
        command = f"{program}-save | grep -vi 'mark 0xc114' | {program}-restore"
        found.append(ForeignLock(name, command))
    return found


def held_addresses() -> list[tuple[str, int, str]]:
    """(address, prefix length, device) of all addresses of this host. Raises `OSError`."""
    from agent.address import inventory

    return [(one["address"], one["prefixlen"], one["device"]) for one in inventory()]
