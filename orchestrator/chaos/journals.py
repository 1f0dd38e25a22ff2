"""What a host's journals say, and a bit of one that is flipped, as by a bad disk."""

from __future__ import annotations

from agent.history import HEAD, MAGIC, whole_records
from orchestrator.chaos.errors import ActionFailed
from orchestrator.chaos.hosts import JOURNALS, Hosts

_AT = len(MAGIC) + HEAD.size + 20  # in the first record
_FLIP = (
    'f = open("{path}", "r+b"); f.seek({at}); byte = f.read(1)[0] ^ 1; '
    "f.seek({at}); f.write(bytes([byte]))"
)


def find(hosts: Hosts, host: str, role: str) -> str:
    """The path of the one journal of a role. Raises `ActionFailed` where it is not one."""
    found = hosts.run(host, f"ls -d {JOURNALS}/*-{role} 2>/dev/null || true").split()
    if len(found) != 1:
        raise ActionFailed(detail=f"{host} has {len(found)} journals of a {role}, not one")
    return found[0]


def agent_of(hosts: Hosts, host: str, role: str) -> int:
    """The PID of the agent that writes it. Raises `ActionFailed`."""
    path = find(hosts, host, role)
    read = f'print(open("{path}", "rb").read().hex())'
    data = bytes.fromhex(hosts.run(host, f"python3 -c '{read}'"))
    pid = max((int(one.facts.get("agent", 0)) for one in whole_records(data)[0]), default=0)
    if not pid:
        raise ActionFailed(detail=f"the journal of the {role} on {host} names no agent")
    return pid


def flip(hosts: Hosts, host: str, path: str) -> None:
    """Flip a bit in its first record; done twice, it is as it was. Nothing, where it is gone."""
    code = _FLIP.format(path=path, at=_AT)
    hosts.run(host, f"test ! -e {path} || python3 -c '{code}'")
