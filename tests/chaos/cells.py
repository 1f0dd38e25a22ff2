"""One cell of the sweep: a migration with one fault in it, and what became of everything."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.fault import HANG, KILL, ORCHESTRATOR, POINTS, SWEPT
from agent.plan import POST_COPY, PRE_COPY
from tests.support.lab import HOSTS, SERVICE, Lab
from tests.support.workloads import start_redis

MAX_BLACKOUT = 3.0  # seconds
_PATIENCE = 150.0  # seconds for the command to end: it waits for a source that may wait for CRIU
_HUNG = 15.0  # seconds until somebody loses patience with a command that hangs
_BY_ITSELF = 8.0  # seconds for the hosts to settle after the command has ended
_BLOB, _RATE = 4 << 20, 2 << 20
# Points that only memory which goes apart comes to.
_APART = {
    **dict.fromkeys(("pre_copy", "pages", "fill"), ["--memory", PRE_COPY]),
    **dict.fromkeys(
        ("serve", "post_copy", "running", "missing"), ["--memory", POST_COPY, "--max-rounds", "0"]
    ),
}
_SYNC = ("sync", "sync_last")  # points that only files brought along come to
_FILES = "/srv/lab-chaos"
_CLIENTS = 4


def faults() -> list[str]:
    """Every point with every action that is swept."""
    return [
        f"{point.name}@{point.role}={action}"
        for point in POINTS
        for action in SWEPT
        if point.takes(action)
    ]


@dataclass(slots=True)
class Cell:
    """What one fault came to."""

    fault: str
    outcome: str = ""  # as the command or `migrate recover` says it
    status: int = 0  # the command's exit status; -9: it was killed
    at: str = ""  # the host where the process lives
    live: int = 0  # copies that run
    errors: list[str] = field(default_factory=list)  # of the clients
    lost: int = 0  # bytes
    left: list[str] = field(default_factory=list)
    stall_s: float = 0.0  # the longest wait of a client: until the service was back
    settled_s: float = 0.0  # from the start of the command until nothing was left on either host
    by: str = "itself"  # or "recover"
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


# Told the source's and the destination's host, and what tells whether the command has ended.
Disturb = Callable[[str, str, Callable[[], bool]], None]


class Sweep:
    """Runs cells one after the other; the process goes on from where the last has left it."""

    def __init__(self, lab: Lab, max_blackout: float = MAX_BLACKOUT) -> None:
        self.lab = lab
        self._max_blackout = max_blackout
        self.pid = 0

    def cells(self, wanted: list[str]) -> Iterator[Cell]:
        for fault in wanted:
            yield self.cell(fault)

    def cell(self, fault: str, disturb: Disturb | None = None) -> Cell:
        """One migration with a fault, and with what `disturb` does to it meanwhile."""
        cell = Cell(fault)
        lab, at = self.lab, self._where()
        if at is None:
            lab.clear()
            self.pid, at = start_redis(lab), "src"
        to = next(host for host in HOSTS if host != at)
        with (
            lab.client("redis_counter.py", SERVICE, 6379, _CLIENTS, 1, 0.001) as counter,
            lab.client("redis_download.py", SERVICE, 6379, _BLOB, _RATE) as download,
        ):
            counter.line(), download.line()
            started = time.monotonic()
            self._migrate(cell, at, to, disturb)
            self._settle(cell)
            cell.settled_s = time.monotonic() - started
            for client in (counter, download):
                seen = client.finish()
                cell.errors += seen["errors"]
                cell.lost += seen.get("lost", 0)
                cell.stall_s = max(cell.stall_s, seen.get("worst_stall_ms", 0.0) / 1000)
        self._judge(cell, at, to)
        if not cell.ok:
            self.pid = 0  # start afresh
        return cell

    def _where(self) -> str | None:
        """The host where the process of the last cell lives."""
        return next((h for h in HOSTS if self.pid and self.lab.alive(h, self.pid)), None)

    def _migrate(self, cell: Cell, at: str, to: str, disturb: Disturb | None) -> None:
        options = ["--max-blackout", str(self._max_blackout), "--fault", cell.fault]
        options += _APART.get(cell.fault.partition("@")[0], [])
        if cell.fault.partition("@")[0] in _SYNC:
            self.lab.run(at, f"mkdir -p {_FILES} && head -c 300000 /dev/urandom > {_FILES}/data")
            options += ["--sync", _FILES]
        process = self.lab.start_migrate(at, to, self.pid, *options)
        if disturb is not None:
            disturb(at, to, lambda: process.poll() is not None)
        hangs = cell.fault.endswith(f"{ORCHESTRATOR}={HANG}")
        try:
            migration = self.lab.end_migrate(process, _HUNG if hangs else _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            cell.status = -9
            if not hangs:
                cell.wrong.append("the command hangs")
            return
        cell.status = migration.status
        cell.outcome = migration.result.get("outcome", "")

    def _settle(self, cell: Cell) -> None:
        """Wait until both hosts are clean; else have them recovered, as an operator would."""
        doubt = cell.outcome == "in-doubt"  # nobody was reached: the command says how to go on
        if self._clean(_BY_ITSELF if not doubt else 1.0) and not doubt:
            return
        cell.by = "recover"
        # First what is known here, then what the hosts know.
        for what in ((), *((host,) for host in HOSTS)):
            _, answer = self.lab.command("recover", *what)
            for one in answer["migrations"]:
                cell.outcome = one["outcome"]
        if not self._clean(_BY_ITSELF):
            cell.left = [f"{host}: {one}" for host in HOSTS for one in self.lab.leftovers(host)]

    def _clean(self, seconds: float) -> bool:
        def clean() -> bool:
            return not any(self.lab.leftovers(host) for host in HOSTS)

        return _within(clean, seconds)

    def _judge(self, cell: Cell, at: str, to: str) -> None:
        lab = self.lab
        holders = [host for host in HOSTS if SERVICE in lab.addresses(host)]
        running = [host for host in HOSTS if lab.state(host, self.pid) in ("S", "R")]
        cell.live, cell.at = len(running), ",".join(running)
        due = {"migrated": to, "rolled-back": at, "refused": at}.get(cell.outcome)
        killed = cell.fault.endswith((f"{ORCHESTRATOR}={KILL}", f"{ORCHESTRATOR}={HANG}"))
        for wrong, what in (
            (cell.live != 1, f"{cell.live} copies run"),
            (cell.errors, "the clients saw errors"),
            (cell.lost, "bytes were lost"),
            (cell.left, "something is left"),
            (not killed and due is None and cell.outcome != "over", f"outcome {cell.outcome!r}"),
            (due is not None and running != [due], f"{cell.outcome}, but at {cell.at}"),
            (holders != running, f"the address is at {holders}"),
        ):
            if wrong:
                cell.wrong.append(what)


def _within(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
