"""Says what of that which was seen is left over, and whether it may be cleared. Pure.

What belongs to a migration under way is never a leftover, and of a process nothing is one without
evidence: the journal of ours, or sockets in repair mode. Whether it is safe to clear is said by the
protocol's table: what an agent found dead leaves to this host alone (`Found.FAIL`, `Found.AGAIN`)
is; what takes the other host (`Found.ASK`, `Found.WAIT`) is not.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from agent.journal import STOPPED
from agent.leftovers import facts
from agent.leftovers.cgroups import command as thaw_command
from agent.leftovers.facts import CLEAR, HAND, RECOVER, Look, UnderWay
from agent.leftovers.journals import DAMAGED, EMPTY
from agent.leftovers.seen import Leftover, Seen, SeenJournal, SeenProcess, SeenTask
from agent.leftovers.words import by_journal, connections, must_not_run, of_journal, problem
from agent.netlock.render import TABLE_PREFIX, TIME_WAITS, table_name
from agent.protocol import SOURCE, TABLES, Found

_TABLE = re.compile(rf"{TABLE_PREFIX}(\d{{8}})_(\d{{6}})_([0-9a-f]{{6}})({TIME_WAITS})?")
_INIT = 1

_NEEDS_OTHER = (Found.ASK, Found.WAIT)


@dataclass(slots=True)
class Judged:
    """What is left over, and what is not."""

    leftovers: list[Leftover] = field(default_factory=list)
    under_way: list[UnderWay] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_wire(self) -> Look:
        order = {kind: place for place, kind in enumerate(facts.KINDS)}
        found = sorted(self.leftovers, key=lambda one: (one.migration, order[one.kind], one.name))
        return Look(
            findings=[one.to_wire() for one in found],
            under_way=list(self.under_way),
            notes=list(self.notes),
        )


def judge(seen: Seen) -> Judged:
    """All findings of one look."""
    return _Judge(seen).all()


def verdict(one: SeenJournal) -> str:
    """Of the journal itself."""
    if one.problem == EMPTY:  # of a destination only the source knows whether there was more of it
        return CLEAR if one.role == SOURCE else RECOVER
    if one.problem:
        return HAND
    state = TABLES[one.role].states[one.state]
    if state.found in _NEEDS_OTHER or state.word == "committed":  # that word is still to be carried
        return RECOVER
    return CLEAR


def verdict_of_things(one: SeenJournal) -> str:
    """Of what this journal is about: as the journal, but for what a destination has committed."""
    if one.problem:
        return verdict(one)
    return RECOVER if TABLES[one.role].states[one.state].found in _NEEDS_OTHER else CLEAR


class _Judge:
    def __init__(self, seen: Seen) -> None:
        begun = {path.rpartition("/")[2] for path in seen.images}
        seen.journals = [_as_it_must_be(one, begun, seen.tables) for one in seen.journals]
        self._seen = seen
        self._busy = {one.id for one in seen.journals if one.busy}
        self._busy |= {one.migration for one in seen.agents if one.migration}
        self._idle = {one.id: one for one in seen.journals if one.id not in self._busy}
        self._found: list[Leftover] = []
        self._notes = list(seen.notes)

    def all(self) -> Judged:
        self._journals()
        self._running()
        self._tasks()
        self._tables()
        self._images()
        self._addresses()
        self._agents()
        self._guardians()
        self._criu()
        under_way = [
            UnderWay(
                id=one.id, role=one.role, state=one.state, pid=one.plan.pid if one.plan else 0,
                agent=one.agent[0] if one.agent_state else 0, stopped=one.agent_state in STOPPED,
            )
            for one in self._seen.journals
            if one.busy
        ]  # fmt: skip
        return Judged(self._found, under_way, self._notes)

    def _add(self, kind: str, name: str, detail: str, verdict: str, clearing: str,
             command: str = "", **more: Any) -> None:  # fmt: skip
        self._found.append(Leftover(kind, name, detail, verdict, clearing, command, **more))

    # --- by journal

    def _journals(self) -> None:
        for one in self._seen.journals:
            if one.busy and one.state != "in-doubt":
                continue
            if one.busy:
                detail, clearing = of_journal(one, f"its agent, {_agent(one)}, waits in doubt")
            elif one.problem:
                detail, clearing, command = problem(one)
                if one.plan is not None:
                    detail = f"{of_journal(one, '')[0]}: {detail}"
                self._add(
                    facts.JOURNAL, one.path, detail, verdict(one), clearing,
                    command.format(path=one.path), migration=one.id, role=one.role,
                )  # fmt: skip
                continue
            else:
                detail, clearing = of_journal(one, "its agent is dead")
            self._add(
                facts.JOURNAL, one.path, detail, verdict(one), clearing,
                migration=one.id, role=one.role,
            )  # fmt: skip

    def _thing(self, kind: str, name: str, migration: str, detail: str, clearing: str,
               command: str, **more: Any) -> None:  # fmt: skip
        """Something of a migration, by its journal; without one all is over, and it is orphaned.

        `command` is for where its journal cannot be gone by.
        """
        if migration in self._busy:
            return
        journal = self._idle.get(migration)
        if journal is None:
            detail += ", of a migration that has no journal here"
            self._add(kind, name, detail, CLEAR, clearing, migration=migration, **more)
            return
        said = verdict_of_things(journal)
        why = {CLEAR: clearing, RECOVER: by_journal(journal), HAND: "its journal cannot be gone by"}
        if journal.plan is not None:  # what it says may be true, and then only it may end this
            command = f"ls -l {journal.path}"
        self._add(
            kind, name, detail, said, why[said], command if said == HAND else "",
            migration=migration, **more,
        )  # fmt: skip

    def _tables(self) -> None:
        known = {table_name(one.id): one.id for one in self._seen.journals}
        for name in self._seen.tables:
            table = f"inet {name}"
            delete = f"nft delete table {table}"
            plain = name.removesuffix(TIME_WAITS)
            match = _TABLE.fullmatch(name)
            if plain not in known and match is None:
                self._add(
                    facts.TABLE, table, "named as ours, but after no migration", HAND,
                    "it may be anything", delete,
                )  # fmt: skip
                continue
            migration = known.get(plain) or "-".join(match.groups()[:3] if match else ())
            what = "connections in TIME_WAIT are locked" if plain != name else "the network lock"
            self._thing(facts.TABLE, table, migration, what, "removes the table", delete)

    def _images(self) -> None:
        for path in self._seen.images:
            migration = path.rpartition("/")[2]
            self._thing(
                facts.IMAGES, path, migration, "images of a process, with its memory",
                "removes the directory", f"rm -r {path}",
            )  # fmt: skip

    def _addresses(self) -> None:
        """A source that may have handed over must not have the address any more."""
        for one in self._idle.values():
            if one.role != SOURCE or one.plan is None:
                continue
            if one.state not in TABLES[SOURCE].committed:
                continue
            ours = {address.address for address in one.plan.addresses}
            for address, length, device in self._seen.addresses:
                if address in ours:
                    self._thing(
                        facts.ADDRESS, f"{address}/{length} dev {device}", one.id,
                        f"held here, but handed over to {one.plan.destination}",
                        f"removes it: {one.plan.destination} has committed", "",
                        held=(address, length, device),
                    )  # fmt: skip

    # --- processes

    def _running(self) -> None:
        """A copy that runs, as somebody continued it, while another one runs or may."""
        for one in self._seen.journals:
            if one.plan is None or (one.busy and one.state != "in-doubt"):
                continue
            table = TABLES[one.role]
            gone = table.states[one.state].copy == "frozen" and one.state in table.committed
            if not gone and table.states[one.state].copy != "stopped":
                continue
            detail, clearing = must_not_run(one)
            for pid in one.living:
                task = self._seen.tasks.get(pid)
                if task is not None and not task.stopped:
                    verdict, stop = verdict_of_things(one), f"kill -STOP {pid}"
                    self._add(
                        facts.PROCESS, _name(task), detail, verdict,
                        f"stop it at once (`{stop}`); {clearing}",
                        stop if verdict == HAND else "", migration=one.id, pid=pid,
                    )  # fmt: skip

    def _tasks(self) -> None:
        owners = {pid: one for one in self._idle.values() for pid in one.living}
        criu = {one.pid for one in self._seen.criu}
        for task in self._seen.tasks.values():
            if task.pid in self._seen.at_work:
                continue
            if task.tracer in criu:
                self._notes.append(f"PID {task.pid} ({task.comm}) is held by a CRIU at work")
            elif (journal := owners.get(task.pid)) is not None:
                self._owned(task, journal)
            elif task.connections or task.parasite:
                self._foreign(task)

    def _owned(self, task: SeenTask, journal: SeenJournal) -> None:
        name = _name(task)
        copy = TABLES[journal.role].states[journal.state].copy
        held = copy in ("frozen", "stopped") or journal.state in ("running", "committed")
        _, does = of_journal(journal, "")
        if task.stopped and held:
            self._thing(
                facts.PROCESS, name, journal.id, f"stopped by its migration, {journal.state}",
                does, "", pid=task.pid,
            )  # fmt: skip
        if task.connections and TABLES[journal.role].states[journal.state].found is Found.OVER:
            self._mute(task)
        elif task.connections:
            self._thing(
                facts.SOCKETS, name, journal.id,
                f"in repair mode: {connections(task.connections)}",
                "they leave repair mode, or end silently with an ended copy", "", pid=task.pid,
            )  # fmt: skip
        self._cgroup(task)

    def _foreign(self, task: SeenTask) -> None:
        name = _name(task)
        if task.stopped:
            why = "CRIU's code is mapped into it" if task.parasite else "its sockets are mute"
            self._add(
                facts.PROCESS, name, f"stopped, and {why}: an interrupted CRIU run", HAND,
                "continued (`kill -CONT`) it fails at these connections, and with CRIU's code in "
                "it may crash; killed it ends without a word to its peers",
                f"kill -KILL {task.pid}", pid=task.pid,
            )  # fmt: skip
        if task.connections:
            self._mute(task)
        self._cgroup(task)

    def _mute(self, task: SeenTask) -> None:
        why = "nobody is left to release them: they are mute, and reading or writing them fails"
        if not task.stopped:
            why += "; a program that uses repair mode itself may want it so"
        self._add(
            facts.SOCKETS, _name(task), f"in repair mode: {connections(task.connections)}", HAND,
            why, f"kill -KILL {task.pid}", pid=task.pid,
        )  # fmt: skip

    def _cgroup(self, task: SeenTask) -> None:
        if task.frozen and all(one.name != task.frozen for one in self._found):
            self._add(
                facts.CGROUP, task.frozen, f"frozen, with {_name(task)} in it", HAND,
                "Streamferry freezes no cgroup: thawed, what is in it goes on as it is",
                thaw_command(task.frozen),
            )  # fmt: skip

    # --- agents, guardians, CRIU

    def _agents(self) -> None:
        for one in self._seen.agents:
            name = f"PID {one.pid}"
            if one.unlinked:
                self._add(
                    facts.AGENT, name, f"its journal was removed while it runs as {one.role}", HAND,
                    "it knows what is left to do: asked to end, it undoes or finishes",
                    f"kill -TERM {one.pid}", migration=one.migration,
                )  # fmt: skip
            elif not one.migration and one.parent == _INIT:
                self._add(
                    facts.AGENT, name, "its session is gone, and it is in no migration", CLEAR,
                    "ends it", pid=one.pid, born=one.born,
                )  # fmt: skip

    def _guardians(self) -> None:
        for one in self._seen.guardians:
            if one.migration not in self._busy and not one.watched:
                self._add(
                    facts.GUARDIAN, f"PID {one.pid}", "its agent is gone, and it does nothing",
                    CLEAR, "ends it", migration=one.migration, role=one.role,
                    pid=one.pid, born=one.born,
                )  # fmt: skip

    def _criu(self) -> None:
        workers = {one.worker: one for one in self._seen.journals if one.worker != (0, 0)}
        working = False
        for one in self._seen.criu:
            journal = workers.get((one.pid, one.born))
            if one.pid in self._seen.at_work or (journal and journal.id in self._busy):
                continue
            held = bool(one.tracees) or one.serving
            if journal is not None and not held:
                self._add(
                    facts.CRIU, f"PID {one.pid}", "the CRIU of a migration whose agent is gone",
                    CLEAR, "ends it", migration=journal.id, role=journal.role,
                    pid=one.pid, born=one.born,
                )  # fmt: skip
            elif journal is None and not held and _is_orphan(one):
                self._add(
                    facts.CRIU, f"PID {one.pid}", f"{' '.join(one.arguments)}: nobody asks it "
                    "anything, and it holds no process", HAND, "it is not ours",
                    f"kill -KILL {one.pid}", pid=one.pid,
                )  # fmt: skip
            else:
                working = True
                self._notes.append(f"a CRIU is at work, PID {one.pid}: {' '.join(one.arguments)}")
        for lock in () if working else self._seen.locks:
            self._add(
                facts.CRIU_LOCK, lock.name, "CRIU's network lock, and no CRIU runs", HAND,
                "between a dump and its restore it has to stay; after an interrupted one it only "
                "holds the connections up", lock.command,
            )  # fmt: skip


def _as_it_must_be(one: SeenJournal, begun: set[str], tables: list[str]) -> SeenJournal:
    """A source that has locked, or made images, had written its first line."""
    if one.problem != EMPTY or one.role != SOURCE:
        return one
    signs = one.id in begun or table_name(one.id) in tables
    return dataclasses.replace(one, problem=DAMAGED) if signs else one


def _is_orphan(one: SeenProcess) -> bool:
    return one.parent == _INIT and one.arguments[1:2] in (("swrk",), ("lazy-pages",))


def _agent(one: SeenJournal) -> str:
    return f"PID {one.agent[0]}" + ", stopped" * (one.agent_state in STOPPED)


def _name(task: SeenTask) -> str:
    return f"PID {task.pid} ({task.comm})"
