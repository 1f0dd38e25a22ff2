"""Actions of chaos experiments (docs/chaos.md).

`host` is a host's name, or `source` or `destination`; a `role` is one of the latter. An action that
cannot be done raises, and ends the experiment; what was done and came to something else than was
expected is told by the probe `unexpected`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from orchestrator.chaos import clocks, disks, journals, network
from orchestrator.chaos.errors import ActionFailed
from orchestrator.chaos.hosts import until
from orchestrator.chaos.session import Session, current, is_open

__all__ = [
    "await_command", "await_state", "corrupt_record", "count_packets", "cut", "drain", "fill_disk",
    "free_disk", "heal", "kill_agent", "kill_host", "kill_orchestrator", "kill_workload",
    "limit_disk", "lose_packets", "mend_record", "migrate", "pause_host", "recover",
    "reset_connections", "restore", "right_clock", "settle", "skew_clock", "slow_link",
    "start_host",
]  # fmt: skip

_STATE = 20.0  # seconds for a journal to enter a state


# --- the command


def migrate(
    workload: str = "redis",
    source: str = "source",
    destination: str = "destination",
    options: Sequence[str] = (),
    faults: Sequence[str] = (),
    expect: Sequence[str] | str | None = None,
    error: str | None = None,
    wait: bool = True,
    patience: float = 150,
) -> dict[str, Any] | None:
    """Move a workload, as `migrate SOURCE DESTINATION --pid N OPTIONS` with a --fault for each of
    `faults`. `wait`: until it has ended, with an outcome of `expect` and the error's code `error`;
    else `await_command` does."""
    session = current()
    arguments = [session.host(source), session.host(destination)]
    arguments += ["--pid", str(session.workload(workload).pid), *options]
    for fault in faults:
        arguments += ["--fault", fault]
    session.start(*arguments)
    return await_command(expect, error, patience) if wait else None


def drain(
    host: str = "source",
    to: Sequence[str] = ("destination",),
    options: Sequence[str] = (),
    expect: Sequence[str] | str | None = None,
    error: str | None = None,
    wait: bool = True,
    patience: float = 200,
) -> dict[str, Any] | None:
    """Empty a host, as `migrate drain HOST --to TO OPTIONS`; the rest as for `migrate`."""
    session = current()
    targets = ",".join(session.host(one) for one in to)
    session.start("drain", session.host(host), "--to", targets, *options)
    return await_command(expect, error, patience) if wait else None


def await_command(
    expect: Sequence[str] | str | None = None, error: str | None = None, patience: float = 150
) -> dict[str, Any]:
    """Await the end of the command that is under way; its result."""
    session = current()
    ended = session.end(patience)
    result = (ended.result.get("drains") or [ended.result])[0]
    _compare(session, result.get("outcome", "killed"), (result.get("error") or {}), expect, error)
    return {
        "status": ended.status,
        **{name: result.get(name) for name in ("id", "outcome", "blackout_ms", "error")},
    }


def recover(
    what: str | None = None,
    expect: Sequence[str] | str | None = None,
    error: str | None = None,
) -> list[dict[str, Any]]:
    """End what was interrupted, as `migrate recover [HOST]`; the outcomes that it tells.

    `error`: the code of the first error, its own or a host's.
    """
    session = current()
    ended = session.command.run("recover", *([session.host(what)] if what else []))
    told = [
        {"outcome": one["outcome"], "lost": one["lost"], "unfinished": one["unfinished"]}
        for one in ended.result.get("migrations", [])
    ]
    outcome = told[0]["outcome"] if told else "nothing to recover"
    errors = [ended.result.get("error")] + [
        one[role]["error"]
        for one in ended.result.get("migrations", [])
        for role in ("source", "destination")
    ]
    _compare(session, outcome, next(filter(None, errors), {}), expect, error)
    return told


def _compare(
    session: Session,
    outcome: str,
    error: dict[str, Any],
    expect: Sequence[str] | str | None,
    code: str | None,
) -> None:
    due = [expect] if isinstance(expect, str) else list(expect or [outcome])
    if outcome not in due:
        why = f" ({error['code']}: {error['message']})" if error else ""
        session.unexpected.append(f"{outcome}{why} where {' or '.join(due)} was due")
    elif code is not None and error.get("code", "none") != code:
        session.unexpected.append(f"the error {error.get('code', 'none')} where {code} was due")


def await_state(role: str, state: str, within: float = _STATE) -> None:
    """Wait until the journal of a migration's source or destination has entered a state
    (docs/protocol.md has them)."""
    session = current()
    host = session.host(role)
    until(lambda: session.hosts.entered(host, state), within, f"the {role} is {state}")


def settle(within: float = 10) -> bool:
    """Wait until nothing of a migration is left on any host; whether that came."""
    return current().clean(within)


# --- who dies, or stands still


def kill_agent(role: str, guardian: bool = False) -> int:
    """SIGKILL to the agent of the migration that is under way; its PID. `guardian`: to that, too,
    and first."""
    session = current()
    host = session.host(role)
    pid = journals.agent_of(session.hosts, host, role)
    if guardian:
        session.hosts.run(host, "pkill -KILL -f 'agent[.]guardian'")
    session.hosts.run(host, f"kill -KILL {pid}")
    return pid


def kill_orchestrator() -> None:
    """SIGKILL to the command that is under way."""
    process = current().under_way()
    process.kill()
    current().end(20)


def kill_workload(host: str, workload: str = "redis") -> None:
    """SIGKILL to the copy of a workload on a host."""
    session = current()
    session.hosts.run(session.host(host), f"kill -KILL {session.workload(workload).pid}")


def kill_host(host: str) -> None:
    """It loses its power: everything that runs there ends, and so does what is in memory alone."""
    session = current()
    name = session.host(host)
    session.disturbed("host", name, undo=lambda: start_host(name))
    session.hosts.power_off(name)


def start_host(host: str) -> None:
    """It has power again; await that it can be reached. Nothing, where it has."""
    session = current()
    name = session.host(host)
    if not session.hosts.up(name):
        session.hosts.power_on(name)
    session.hosts.await_up(name)


def pause_host(host: str, seconds: float) -> None:
    """None of its processes gets on for so long."""
    session = current()
    with session.hosts.standing_still(session.host(host)):
        time.sleep(seconds)


# --- the network


def cut(parties: Sequence[str]) -> None:
    """Nothing gets through between each two neighbours of these, and nobody is told. A party is a
    host, or `orchestrator`."""
    _disturb(parties, network.verdict())


def lose_packets(parties: Sequence[str], percent: float) -> None:
    """So many of a hundred packets between these get lost."""
    _disturb(parties, network.verdict(percent=percent))


def slow_link(parties: Sequence[str], kib_per_second: int) -> None:
    """Each direction between these takes no more than that; what is over it gets lost."""
    _disturb(parties, network.verdict(rate_kib=kib_per_second))


def reset_connections(parties: Sequence[str]) -> None:
    """As a careless firewall would, answer what comes in between these with a reset."""
    _disturb(parties, network.RESET)


def _disturb(parties: Sequence[str], then: str) -> None:
    session = current()
    names = [session.party(one) for one in parties]
    if len(names) < 2 or any(one == other for one, other in pairwise(names)):
        raise ActionFailed(detail=f"a link is between two parties, not {', '.join(parties)}")
    # Whoever has a service's address may be the one that is meant.
    services = [one.address for one in session.workloads.values()]
    more = {host: services for host in session.setup.hosts}
    session.disturbed("network", undo=heal)
    network.disturb(session.hosts, names, then, more)


def heal() -> None:
    """The network is as before."""
    session = current()
    for host in session.hosts.names:
        if session.hosts.up(host):  # one without power has no table, either
            network.heal(session.hosts, host)


def count_packets(host: str, workload: str = "redis") -> None:
    """From now on count what leaves a host in the name of a workload's address: `packets_said`."""
    session = current()
    name, address = session.host(host), session.workload(workload).address
    session.disturbed("count", name, undo=lambda: network.heal(session.hosts, name, network.HEARD))
    network.count(session.hosts, name, address)


# --- disks, records, clocks


def limit_disk(host: str, disk: str, kib: int = 1024) -> None:
    """Let the disk of a host's `journal` or `images` have so much room; before it is in use."""
    session = current()
    name = session.host(host)
    disks.place(disk)
    session.disturbed("disk", name, disk, undo=lambda: disks.release(session.hosts, name, disk))
    disks.limit(session.hosts, name, disk, kib)


def fill_disk(host: str, disk: str) -> None:
    """Leave no room there, on one that was limited."""
    session = current()
    disks.fill(session.hosts, session.host(host), disk)


def free_disk(host: str, disk: str) -> None:
    """There is room again."""
    session = current()
    disks.free(session.hosts, session.host(host), disk)


def corrupt_record(role: str) -> str:
    """Flip a bit in the first record of the journal that a dead agent has left; its path."""
    session = current()
    host = session.host(role)
    path = journals.find(session.hosts, host, role)
    session.disturbed("record", role, undo=lambda: journals.flip(session.hosts, host, path))
    journals.flip(session.hosts, host, path)
    return path


def mend_record(role: str) -> None:
    """The journal is as it was."""
    current().undo("record", role)


def skew_clock(host: str, seconds: float) -> None:
    """Have the clocks of a host, wall clock and monotonic, be off for the agents that are started
    there from now on (orchestrator/chaos/clocks.py says how)."""
    session = current()
    name = session.host(host)
    session.disturbed("clock", name, undo=lambda: clocks.restore(session.hosts, name))
    clocks.skew(session.hosts, name, seconds)


def right_clock(host: str) -> None:
    """The clocks are right again."""
    clocks.restore(current().hosts, current().host(host))


# --- the way back


def restore() -> None:
    """Undo all that disturbs: cuts, disks, records, clocks; hosts are started. For `rollbacks`."""
    if not is_open():  # it was refused before it began
        return
    if problems := current().restore():
        raise ActionFailed(detail="; ".join(problems))
