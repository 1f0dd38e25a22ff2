"""Hosts, processes and migrations that are no more than a table, for drains without any host."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.plan import Plan, new_id
from agent.probe.errors import NoSuchProcess
from agent.probe.running import EndpointFacts, Running, RunningProcess
from orchestrator.draining.beginning import Asked, ask
from orchestrator.draining.journal import Item
from orchestrator.draining.mover import Move
from orchestrator.errors import HostUnreachable
from orchestrator.migration import result as results
from orchestrator.migration.driver import Request
from orchestrator.playbook.known import Known
from orchestrator.playbook.model import Defaults, Drain, Hosts
from orchestrator.records import Records
from orchestrator.recovery import Named
from tests.support.facts import Case, host, info, listener

Json = dict[str, Any]
GIB = 1 << 30


def process(pid: int, **over: Any) -> RunningProcess:
    facts: Json = {
        "pid": pid, "ppid": 1, "sid": pid, "born": pid * 10, "comm": f"program{pid}",
        "command": f"program{pid} --flag", "unit": "", "labels": {},
        "listening": [EndpointFacts(f"10.77.0.{pid % 100 + 100}", 6379)],
        "addresses": [f"10.77.0.{pid % 100 + 100}"], "memory": 8 << 20,
    }  # fmt: skip
    return RunningProcess(**{**facts, **over})  # type: ignore[typeddict-item]


@dataclass
class World:
    """What runs where, and what each host is told to answer."""

    hosts: dict[str, dict[int, RunningProcess]] = field(
        default_factory=lambda: {"src": {}, "dst": {}, "spare": {}}
    )
    cordons: dict[str, Json] = field(default_factory=dict)
    journals: dict[str, list[Json]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    pid_files: dict[str, int] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    restarted: set[str] = field(default_factory=set)  # they have another identity now
    obstacles: dict[int, str] = field(default_factory=dict)  # pid -> a pipe's other end
    taken: dict[str, list[int]] = field(default_factory=dict)  # host -> PIDs that are taken there
    unwell: dict[str, set[str]] = field(default_factory=dict)  # host -> what is not well there
    endings: dict[int, list[Any]] = field(default_factory=dict)  # pid -> what moves of it come to
    timeline: list[tuple[str, str]] = field(default_factory=list)  # (event, key or host)
    asked: list[str] = field(default_factory=list)
    differs: dict[int, str] = field(default_factory=dict)  # pid -> its file, not at destinations
    gates: dict[int, asyncio.Event] = field(default_factory=dict)  # pid -> its move waits for it
    moves: list[FakeMover] = field(default_factory=list)

    def start(self, pid: int, host: str = "src", **over: Any) -> None:
        if "listening" in over:
            over["listening"] = [EndpointFacts(*one) for one in over["listening"]]
        self.hosts[host][pid] = process(pid, **over)

    def where(self, pid: int) -> list[str]:
        return [name for name, there in self.hosts.items() if pid in there]

    async def ask(self, host: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        await asyncio.sleep(0)
        if host in self.unreachable:
            raise HostUnreachable(host=host, detail="no route to host")
        return copy.deepcopy(await call(_Client(self, host)))

    async def close(self) -> None: ...


@dataclass
class _Client:
    """The agent of one host."""

    world: World
    host: str

    async def workloads(self, pid_files: list[str]) -> Running:
        files: list[Any] = []
        for path in pid_files:
            pid = self.world.pid_files.get(path, 0)
            problem = "" if pid else "No such file or directory"
            files.append({"path": path, "pid": pid, "problem": problem})
        there = list(self.world.hosts[self.host].values())
        return Running(processes=there, pid_files=files)

    async def probe_host(self, images_dir: str) -> Json:
        number = {"src": 11, "dst": 12, "spare": 14}[self.host]
        facts: Json = dict(host(self.host, f"10.77.0.{number}", f"fd77::{number}"))
        if self.host in self.world.restarted:
            facts["identity"] = f"another boot of {self.host}"
        facts["cordon"] = self.world.cordons.get(self.host)
        facts["memory_available"] = self.world.memory.get(self.host, 4 * GIB)
        if self.host in ("src", "spare"):
            rows = self.world.hosts[self.host].values()
            held = (one for row in rows for one in row["addresses"])
            own = facts["addresses"]
            facts["addresses"] = own + [
                {**own[2], "address": one, "primary": False} for one in dict.fromkeys(held)
            ]
        return facts

    async def probe_process(self, pid: int) -> Json:
        one = self.world.hosts[self.host].get(pid)
        if one is None:
            raise NoSuchProcess(pid=pid)
        facts: Json = dict(Case().process)
        at = one["listening"]
        facts.update(
            pid=pid, comm=one["comm"], processes=[info(pid, threads=[pid], memory=one["memory"])],
            memory=one["memory"], connections=[], others=[],
            listeners=[listener(end.address, end.port, pid=pid) for end in at],
        )  # fmt: skip
        if pid in self.world.differs:
            facts["files"] = [_file(self.world.differs[pid], pid)]
        if pid in self.world.obstacles:
            facts["obstacles"] = [{"code": "pipe-outside", "fields": {
                "thing": f"descriptor 5 of process {pid}", "path": "pipe:[5]",
                "other": self.world.obstacles[pid],
            }}]  # fmt: skip
        return facts

    async def probe_destination(self, process: Json, images_dir: str) -> Json:
        found: Json = dict(Case().found)
        taken = set(self.world.taken.get(self.host, [])) | set(self.world.hosts[self.host])
        pids = {tid for one in process["processes"] for tid in one["threads"]}
        found["files"] = [
            {"path": one["path"], "problem": "missing", "detail": "", "pid": one["pid"],
             "use": one["use"]}
            for one in process["files"]
        ]  # fmt: skip
        found["taken"] = [{"pid": p, "owner": p, "comm": "cron"} for p in sorted(pids & taken)]
        return found

    async def look_at_paths(self, paths: list[str]) -> Json:
        kind = "file" if self.host == "src" else "missing"
        rows = [{"path": one, "real": one, "kind": kind, "size": 5} for one in paths]
        return {"rsync": None, "paths": rows}

    async def health(self, kind: str, what: str, seconds: float) -> Json:
        self.world.asked.append(f"{self.host}: {kind} {what}")
        well = what not in self.world.unwell.get(self.host, set())
        return {"healthy": well, "detail": "fine" if well else "it is ill"}

    async def cordon(self, reason: str) -> Json:
        self.world.timeline.append(("cordon", self.host))
        return self.world.cordons.setdefault(self.host, {"since": 1, "reason": reason})

    async def uncordon(self) -> bool:
        return self.world.cordons.pop(self.host, None) is not None

    async def journals(self) -> tuple[list[Json], list[Any]]:
        return self.world.journals.get(self.host, []), []


def _file(path: str, pid: int) -> Json:
    return {"path": path, "kind": "file", "size": 5, "mode": 0o100644, "mtime_ns": 0,
            "build_id": "", "digest": "", "written": False, "pid": pid,
            "use": "descriptor 5"}  # fmt: skip


class FakeMover:
    """A migration: the process is at the other host a moment later, or as the world says."""

    world: World  # of a subclass (`mover`)

    def __init__(
        self, request: Request, records: Records, limits: Any, begun: Any, said: Any, note: Any
    ) -> None:
        self.request, self._records, self._begun, self._said = request, records, begun, said
        self.limits = limits
        self._interrupted = asyncio.Event()
        self.world.moves.append(self)

    def interrupt(self) -> None:
        self._interrupted.set()

    async def go(self) -> Move:
        request, world = self.request, self.world
        result = results.empty(new_id(), request.source, request.destination, request.pid)
        plan = Plan(id=result["id"], pid=request.pid, tree=(request.pid,), addresses=(),
                    listeners=(), memory=1, shell_job=False)  # fmt: skip
        self._begun(plan)
        named = Named(plan.id, request.source, request.destination, request.pid)
        self._records.begin(named, None)
        world.timeline.append(("begin", str(request.pid)))
        self._said("lock", 0, 0)
        if request.pid in world.gates:
            waits = {asyncio.ensure_future(one.wait())
                     for one in (world.gates[request.pid], self._interrupted)}  # fmt: skip
            _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in left:
                one.cancel()
        for _ in range(request.pid % 5):
            await asyncio.sleep(0)
        endings = world.endings.get(request.pid, [])
        ending = endings.pop(0) if endings else "migrated"
        if self._interrupted.is_set():
            ending = AgentError(detail="cancelled during lock")
        if isinstance(ending, AgentError):
            result["error"] = results.described(ending, "lock")
            ending = "rolled-back"
        elif ending == "lost":
            del world.hosts[request.source][request.pid]
            result["error"] = {"code": "copy-lost", "message": "gone", "hint": "", "phase": "x"}
        elif ending == "in-doubt":
            result["error"] = {"code": "in-doubt", "message": "?", "hint": "", "phase": "commit"}
        else:
            one = world.hosts[request.source].pop(request.pid)
            world.hosts[request.destination][request.pid] = one
            result["blackout_ms"] = 40.0
        result["outcome"] = "migrated" if ending == "lost" else ending
        self._records.end(plan.id, result)
        world.timeline.append(("end", str(request.pid)))
        return Move(result, None)


def mover(world: World) -> type[FakeMover]:
    return type("Mover", (FakeMover,), {"world": world})


@dataclass
class Told:
    """Keeps what a listener is told."""

    world: World
    states: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def changed(self, item: Item) -> None:
        self.states.append((item.key, item.state))
        self.world.timeline.append((item.state, item.key))

    def progress(self, item: Item, phase: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def asked(hosts: Json | None = None, **drain: Any) -> Asked:
    """A drain of src over dst and spare, unless told otherwise."""
    made = Drain.model_validate({"node": "src", "to": ["dst", "spare"], **drain})
    inventory = Hosts.model_validate({"inventory": 1, "hosts": hosts}) if hosts else None
    return ask(made, Defaults(), Known([], inventory, lambda name: True))


def records(directory: Path) -> Records:
    return Records(directory / "migrations")
