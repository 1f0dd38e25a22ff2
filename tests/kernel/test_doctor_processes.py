"""Processes, agents, guardians and CRIUs that are left over, made for real."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import offspring
from agent.freeze import thread_states
from agent.kernel import proc
from agent.leftovers.facts import HAND
from agent.protocol import SOURCE
from tests.support.doctor import Doctor, held, repaired, runs, stop
from tests.support.leftovers import ID, keys, orphan
from tests.support.netns import wait_until
from tests.support.processes import Start

ROOT = Path(__file__).resolve().parents[2]
_STANDS = "import os,sys,time; os.close(int(sys.argv[-1])); time.sleep(600)"
_MEMFD = (
    "import os,sys,time; m=os.memfd_create('streamferry-agent');"
    "os.close(int(sys.argv[-1])); time.sleep(600)"
)


def test_a_tree_that_an_interrupted_criu_left(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        done = doctor.keeps(("process", HAND), ("sockets", HAND))
        ends = [f"{host}:{port}" for host, port in (
            pair.server.getsockname(), pair.client.getsockname())]  # fmt: skip
        sockets = done["left"]["findings"][1]
        assert " - ".join(ends) in sockets["detail"]
        assert set(thread_states(pid).values()) == {"T"} and repaired(pair.server)


def test_crius_code_in_a_stopped_process(doctor: Doctor, start: Start) -> None:
    pid = start("""
        m = os.memfd_create("CRIUMFD"); os.ftruncate(m, 4096)
        kept = mmap.mmap(m, 4096); os.close(m)
    """)
    doctor.pids.append(pid)
    doctor.keeps()
    stop(pid)
    doctor.keeps(("process", HAND))


def test_locks_of_criu(doctor: Doctor) -> None:
    doctor.host.command("nft", "add table inet CRIU-4711; add table inet CRIU")
    done = doctor.keeps(("criu-lock", HAND))
    assert done["left"]["findings"][0]["command"] == "nft delete table inet CRIU-4711"


def test_a_lock_of_criu_made_with_iptables(doctor: Doctor) -> None:
    if shutil.which("iptables-nft-save") is None:
        pytest.skip("no iptables here")
    mark = ("-m", "mark", "!", "--mark", "0xC114")
    doctor.host.command("iptables", "-A", "INPUT", *mark, "-s", "10.0.0.1", "-j", "DROP")
    doctor.host.command("iptables", "-N", "CRIU")
    doctor.host.command("iptables", "-I", "OUTPUT", "-j", "CRIU")
    found = doctor.look()["findings"]
    assert keys({"findings": found}) == [("criu-lock", HAND)] * 2
    for one in found:
        doctor.host.command("sh", "-c", one["command"])
    assert doctor.look()["findings"] == []


def guardian_of(doctor: Doctor, agent: int) -> int:
    """A guardian whose pipe somebody still holds."""
    watched, _ = pipe = os.pipe()
    arguments = [ID, SOURCE, str(doctor.places.journals), str(watched), str(agent)]
    process = offspring.start("agent.guardian", arguments, [watched])
    _started.append((process, pipe))
    doctor.pids.append(process.pid)
    return process.pid


_started: list[tuple[subprocess.Popen[bytes], tuple[int, int]]] = []


@pytest.fixture(autouse=True)
def _guardians() -> Iterator[None]:
    yield
    for process, pipe in _started:
        process.kill()
        process.wait()
        for fd in pipe:
            os.close(fd)
    _started.clear()


def dead() -> int:
    """The PID of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_a_guardian_that_watches_nothing(doctor: Doctor) -> None:
    pid = guardian_of(doctor, dead())
    wait_until("it stands", lambda: "agent.guardian" in " ".join(proc.cmdline(pid)))
    stop(pid)  # else it would find out by itself
    doctor.clears("guardian")
    wait_until("it has ended", lambda: set(thread_states(pid).values()) <= {"Z"})


def test_a_guardian_that_watches(doctor: Doctor) -> None:
    pid = guardian_of(doctor, os.getpid())
    wait_until("it stands", lambda: "agent.guardian" in " ".join(proc.cmdline(pid)))
    doctor.keeps()
    assert runs(pid)


def test_a_guardian_that_stands_still_has_its_migration_settled(doctor: Doctor) -> None:
    pid = guardian_of(doctor, dead())
    wait_until("it stands", lambda: "agent.guardian" in " ".join(proc.cmdline(pid)))
    stop(pid)
    doctor.journal(SOURCE, "locked").close()
    doctor.clears("journal", "guardian")


def test_agents_without_a_session(doctor: Doctor) -> None:
    idle = orphan(_MEMFD, "streamferry-agent")
    working = orphan(
        _MEMFD.replace("os.close", "f=os.open(sys.argv[2], os.O_RDONLY); os.close", 1),
        "streamferry-agent",
        str(doctor.journal(SOURCE, "frozen").path),
    )
    named_so = orphan(_STANDS, "streamferry-agent")
    doctor.pids += [idle, working, named_so]
    try:
        assert [(one["kind"], one["name"]) for one in doctor.look()["findings"]] == [
            ("agent", f"PID {idle}")
        ]
        assert len(doctor.fix()["cleared"]) == 1
        assert proc.born(idle) == 0 or set(thread_states(idle).values()) <= {"Z"}
        assert runs(working) and runs(named_so)
    finally:
        for pid in (idle, working, named_so):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_an_agent_of_a_journal_that_was_removed(doctor: Doctor) -> None:
    made = doctor.journal(SOURCE, "frozen")
    pid = orphan(
        _MEMFD.replace("os.close", "f=os.open(sys.argv[2], os.O_RDONLY); os.close", 1),
        "streamferry-agent",
        str(made.path),
    )
    doctor.pids.append(pid)
    try:
        made.remove()
        doctor.lock()
        doctor.images()
        doctor.keeps(("agent", HAND))
        assert runs(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_frozen_cgroup(doctor: Doctor) -> None:
    group = Path("/sys/fs/cgroup/freezer", f"streamferry-test-{os.getpid()}")
    if not group.parent.is_dir():
        pytest.skip("no freezer of cgroup v1 here")
    group.mkdir()
    try:
        with held(doctor) as (_, pid):
            (group / "cgroup.procs").write_text(str(pid))
            (group / "freezer.state").write_text("FROZEN")
            try:
                doctor.keeps(("sockets", HAND), ("cgroup", HAND))
                (found,) = [one for one in doctor.look()["findings"] if one["kind"] == "cgroup"]
                assert found["name"] == str(group)
                subprocess.run(["sh", "-c", found["command"]], check=True)
                assert (group / "freezer.state").read_text().strip() == "THAWED"
            finally:
                (group / "freezer.state").write_text("THAWED")
    finally:
        group.rmdir()


def test_sockets_that_an_agent_has_a_copy_of(doctor: Doctor) -> None:
    """As in a container, whose journals are not seen here."""
    with held(doctor) as (pair, pid):
        stop(pid)
        agent = orphan(_MEMFD, "streamferry-agent", pass_fds=(pair.server.fileno(),))
        doctor.keeps(("process", HAND), ("sockets", HAND))
        doctor.pids.append(agent)
        try:
            assert [one["kind"] for one in doctor.look()["findings"]] == ["agent"]
        finally:
            os.kill(agent, signal.SIGKILL)
