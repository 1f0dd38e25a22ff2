"""One look at this host, and what of it is left over. Blocks; nothing is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path

from agent.errors import AgentError
from agent.kernel import proc
from agent.leftovers import journals, network
from agent.leftovers.cgroups import Freezers
from agent.leftovers.judge import Judged, judge
from agent.leftovers.processes import LIMIT, Processes, descendants, tracees
from agent.leftovers.seen import Places, Seen, SeenJournal, SeenProcess
from agent.plan import ID_PATTERN

_POLL = 0.1  # seconds between looks at what may end by itself


def look(places: Places) -> Judged:
    """What is left over on this host, and stays so. Raises `OSError`."""
    judged = judge(gather(places))
    deadline = time.monotonic() + places.patience
    while judged.leftovers and time.monotonic() < deadline:
        time.sleep(_POLL)
        before = {one.key for one in judged.leftovers}
        judged = judge(gather(places))
        judged.leftovers = [one for one in judged.leftovers if one.key in before]
    return judged


def gather(places: Places) -> Seen:
    """All that is looked at. The journals are read first and last: what is of a migration that was
    under way then or then is nobody's leftover. Raises `OSError`."""
    seen = Seen()
    before = journals.look(places.journals)
    _network(seen)
    seen.images = _images(places, before)
    processes = Processes(places)
    seen.agents, seen.guardians = processes.agents, processes.guardians
    traced = tracees(processes.pids) if processes.criu else {}
    seen.criu = [
        dataclasses.replace(one, tracees=tuple(traced.get(one.pid, ()))) for one in processes.criu
    ]
    freezers = Freezers(places.cgroups)
    wanted = {pid for one in before for pid in one.living}
    seen.tasks, complete = processes.tasks(wanted, freezers)
    if not complete:
        seen.notes.append(f"not all sockets could be looked at in {LIMIT:.0f} s")
    seen.journals = _joined(before, journals.look(places.journals))
    seen.at_work = _at_work(seen.journals, seen.agents)
    with contextlib.suppress(OSError):
        seen.addresses = network.held_addresses()
    return seen


def _network(seen: Seen) -> None:
    try:
        seen.tables, seen.locks = network.tables()
    except AgentError as error:
        seen.notes.append(f"nftables tables were not looked at: {error.message}")
    seen.locks += network.iptables_locks()


def _images(places: Places, known: list[SeenJournal]) -> list[str]:
    """Directories named as migrations, where images rest as a rule or by a plan."""
    parents = {places.images, *(Path(one.plan.images_dir) for one in known if one.plan)}
    found = []
    for parent in parents:
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            found += [
                entry.path
                for entry in entries
                if ID_PATTERN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    return sorted(found)


def _joined(before: list[SeenJournal], after: list[SeenJournal]) -> list[SeenJournal]:
    """Those there are; under way, where one was at either time."""
    earlier = {(one.id, one.role): one for one in before}
    found = []
    for one in after:
        first = earlier.pop((one.id, one.role), None)
        if first is None or first.busy:  # it began, or ended, while we looked
            one = dataclasses.replace(one, busy=True)
        found.append(one)
    return found + [dataclasses.replace(one, busy=True) for one in earlier.values()]


def _at_work(known: list[SeenJournal], agents: list[SeenProcess]) -> set[int]:
    roots = {one.pid for one in agents if one.migration}
    for one in known:
        if one.busy:
            agent, born = one.agent
            roots |= {agent} if agent and proc.born(agent) == born else set()
            roots |= {*one.living, *(one.plan.tree if one.plan else ())}
    return descendants(roots)
