"""What interrupted migrations leave, made for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent import history
from agent import journal as journals
from agent.journal import Journal
from agent.kernel import proc
from agent.leftovers.seen import SeenJournal
from agent.plan import Address, Plan
from agent.protocol import SOURCE, Log

ID = "20261124-120000-abcdef"
OTHER = "20261124-130000-000000"
TABLE = "streamferry_20261124_120000_abcdef"
SERVICE = "10.99.0.100"


def plan(migration: str = ID, pid: int = 4_000_000, **over: Any) -> Plan:
    addresses = (Address(SERVICE, 24, 4, "eth0", "eth0"),)
    return Plan(
        migration, pid, (pid,), addresses, (), 0, False, source="src", destination="dst", **over
    )


def journal(
    directory: Path, role: str, state: str, migration: str = ID, pid: int = 4_000_000, **over: Any
) -> Journal:
    """The journal of an agent that got to a state; it is still open, and so locked."""
    made = Journal.create(migration, role, directory)
    more = {name: over.pop(name) for name in ("worker", "worker_born", "ticks") if name in over}
    made.record(
        "ready",
        Log.DECISION,
        {
            "plan": plan(migration, pid, **over).to_wire(),
            "boot": proc.boot_id(),
            "born": proc.born(pid) or 1,  # a process that has ended
            "agent": os.getpid(),
            "agent_born": proc.born(os.getpid()),
        },
    )
    if role != SOURCE:
        made.record("restoring", Log.NOTE, {"ticks": more.pop("ticks", 1)})
    if state != "ready":
        made.record(state, Log.DECISION, more)
    return made


def seen(role: str, state: str, **over: Any) -> SeenJournal:
    """The same, as a look has it."""
    fields: dict[str, Any] = {
        "id": ID, "role": role, "path": f"/journal/{ID}-{role}", "busy": False, "state": state,
        "plan": plan(pid=5000), "agent": (900, 9), "living": (5000,),
    }  # fmt: skip
    return SeenJournal(**{**fields, **over})


def append(path: Path, data: bytes) -> None:
    """Put bytes behind the last whole record."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, history.whole_records(journals.contents(fd))[1])
    finally:
        os.close(fd)


def orphan(code: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> int:
    """Start `python3 -c CODE ARGUMENTS...` with no parent but init; its PID, when it stands.

    The code has to close the descriptor that its last argument names.
    """
    read_fd, write_fd = os.pipe()
    starter = (
        "import subprocess,sys;"
        "print(subprocess.Popen([sys.executable,'-c',*sys.argv[2:]],"
        "pass_fds=[int(one) for one in sys.argv[1].split(',')],"
        "stdin=-3,stdout=-3,stderr=-3,start_new_session=True).pid)"
    )
    passed = (write_fd, *pass_fds)
    try:
        done = subprocess.run(
            [sys.executable, "-c", starter, ",".join(map(str, passed)), code, *arguments,
             str(write_fd)],
            pass_fds=passed, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.close(write_fd)
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)
    return int(done.stdout)


def keys(answer: Any) -> list[tuple[str, str]]:
    """(kind, verdict) of what was found."""
    return [(one["kind"], one["verdict"]) for one in answer["findings"]]
