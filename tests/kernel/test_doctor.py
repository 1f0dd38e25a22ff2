"""Every leftover made for real, found, and cleared where that is safe."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.freeze import thread_states
from agent.guardian import _CODE
from agent.journal import Journal
from agent.kernel import proc, uapi
from agent.leftovers import clearing, journals, looking
from agent.leftovers.facts import CLEAR, HAND, RECOVER, Fixed, Look
from agent.leftovers.seen import Places
from agent.netlock import apply, render
from agent.probe.facts import validate
from agent.protocol import DESTINATION, SOURCE
from tests.support.leftovers import ID, OTHER, SERVICE, TABLE, journal, keys, orphan
from tests.support.netns import Host, wait_until
from tests.support.processes import Start, processes
from tests.support.tcp import Pair, connected

ROOT = Path(__file__).resolve().parents[2]
# A process with one socket: descriptor `argv[1]`, which it is handed.
_HOLDER = "import os,sys,time; os.write(int(sys.argv[2]), b'1'); time.sleep(600)"
_STANDS = "import os,sys,time; os.close(int(sys.argv[-1])); time.sleep(600)"
_MEMFD = (
    "import os,sys,time; m=os.memfd_create('streamferry-agent');"
    "os.close(int(sys.argv[-1])); time.sleep(600)"
)


class Doctor:
    """One host's, with places of its own; network and files of no other test are there."""

    def __init__(self, host: Host, peer: Host, directory: Path) -> None:
        self.host, self.peer = host, peer
        directory.mkdir()
        self.pids: list[int] = []  # others test on this host, too
        self.places = Places(
            directory / "journal", directory / "images", pids=lambda: self.pids, patience=0.3
        )
        self.places.journals.mkdir(mode=0o700)
        self.places.images.mkdir(mode=0o700)

    def look(self) -> Look:
        answer = self.host.run(looking.look, self.places).to_wire()
        return validate(answer, Look, "look")

    def fix(self) -> Fixed:
        return validate(self.host.run(clearing.fix, self.places), Fixed, "fix")

    def clears(self, *kinds: str) -> Fixed:
        """`fix` clears exactly these, and a second look finds nothing."""
        assert sorted(one["kind"] for one in self.look()["findings"]) == sorted(kinds)
        done = self.fix()
        assert done["errors"] == []
        assert sorted(one["kind"] for one in done["cleared"]) == sorted(kinds)
        assert done["left"]["findings"] == self.look()["findings"] == []
        return done

    def keeps(self, *expected: tuple[str, str]) -> Fixed:
        """`fix` leaves exactly these (kind, verdict)."""
        done = self.fix()
        assert sorted(keys(done["left"])) == sorted(expected), done
        assert done["cleared"] == [] and done["errors"] == []
        return done

    def journal(self, role: str, state: str, **over: Any) -> Journal:
        made = journal(
            self.places.journals, role, state, images_dir=str(self.places.images), **over
        )
        return made

    def lock(self, migration: str = ID) -> None:
        self.host.run(apply.run, render.lock(migration, [], [], stage="full"))

    def tables(self) -> str:
        return self.host.command("nft", "list", "tables")

    def images(self, migration: str = ID) -> Path:
        path = self.places.images / migration
        path.mkdir(mode=0o700)
        (path / "pages-1.img").write_bytes(b"secret")
        return path


@pytest.fixture
def doctor(
    pair: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Doctor]:
    monkeypatch.setattr(apply, "_shared", None)  # that one is of another namespace
    yield Doctor(*pair, tmp_path / "doctor")
    if apply._shared is not None:
        apply._shared.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


@contextlib.contextmanager
def held(doctor: Doctor, *, repair: bool = True) -> Iterator[tuple[Pair, int]]:
    """A connection whose server end is in repair mode, and of another process alone; its PID."""
    with connected(doctor.host, doctor.peer, 4) as pair:
        fd = pair.server.fileno()
        read_fd, write_fd = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(fd), str(write_fd)],
            pass_fds=(fd, write_fd), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert os.read(read_fd, 1) == b"1"
            doctor.pids.append(process.pid)
            if repair:
                pair.server.setsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
            yield pair, process.pid
        finally:
            process.kill()
            process.wait()
            os.close(read_fd)
            os.close(write_fd)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until("it is stopped", lambda: set(thread_states(pid).values()) == {"T"})


def runs(pid: int) -> bool:
    return set(thread_states(pid).values()) <= {"R", "S"} and proc.born(pid) > 0


def repaired(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR))


# --- nothing


def test_on_a_clean_host_nothing_is_found(doctor: Doctor) -> None:
    assert doctor.look() == {"findings": [], "under_way": [], "notes": []}
    doctor.clears()


def test_who_was_stopped_by_hand_is_left_alone(doctor: Doctor, start: Start) -> None:
    pid = start("")
    doctor.pids.append(pid)
    stop(pid)
    doctor.clears()
    assert set(thread_states(pid).values()) == {"T"}


def test_connections_that_are_well_are_left_alone(doctor: Doctor) -> None:
    with held(doctor, repair=False) as (_, pid):
        stop(pid)
        doctor.clears()


# --- tables and images


def test_tables_without_a_migration(doctor: Doctor) -> None:
    doctor.lock()
    doctor.lock(OTHER)
    doctor.host.run(apply.run, render.time_waits(ID, []))
    doctor.host.command("nft", "add table inet streamferry_backup; add table inet other")
    found = doctor.look()["findings"]
    assert sorted(keys({"findings": found})) == [("table", CLEAR)] * 3 + [("table", HAND)]
    done = doctor.fix()
    assert len(done["cleared"]) == 3
    assert keys(done["left"]) == [("table", HAND)]
    assert doctor.tables().split() == "table inet streamferry_backup table inet other".split()


def test_images_without_a_migration(doctor: Doctor) -> None:
    path = doctor.images()
    outside = doctor.places.journals.parent / "precious"
    outside.mkdir()
    (doctor.places.images / OTHER).symlink_to(outside)
    (doctor.places.images / "lost+found").mkdir()
    doctor.clears("images")
    assert not path.exists() and outside.exists()
    assert (doctor.places.images / "lost+found").exists()


def test_images_elsewhere_are_found_by_the_journal(doctor: Doctor, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ID).mkdir(parents=True)
    journal(doctor.places.journals, SOURCE, "locked", images_dir=str(elsewhere)).close()
    doctor.clears("journal", "images")
    assert not elsewhere.exists()


# --- by journal


def test_a_source_that_may_decide_alone_goes_on(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        doctor.journal(SOURCE, "frozen", pid=pid).close()
        done = doctor.clears("journal", "process", "sockets", "table", "images")
        assert {one["migration"] for one in done["cleared"]} == {ID}
        assert runs(pid) and not repaired(pair.server)
        assert not path.exists() and TABLE not in doctor.tables()
        assert os.listdir(doctor.places.journals) == []
        pair.client.sendall(b"ping")
        assert pair.server.recv(4) == b"ping"


def test_a_source_in_doubt_waits_for_the_other_host(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        doctor.host.add_address(SERVICE)
        doctor.journal(SOURCE, "handed-over", pid=pid).close()
        kinds = ("journal", "process", "sockets", "table", "images", "address")
        doctor.keeps(*((kind, RECOVER) for kind in kinds))
        assert set(thread_states(pid).values()) == {"T"} and repaired(pair.server)
        assert path.exists() and TABLE in doctor.tables()
        assert SERVICE in doctor.host.ip("address")


def test_a_source_whose_destination_committed_ends_its_copy(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.host.add_address(SERVICE)
        doctor.journal(SOURCE, "committed", pid=pid).close()
        pair.server.close()
        doctor.clears("journal", "process", "sockets", "table", "address")
        assert set(thread_states(pid).values()) <= {"Z"}
        assert SERVICE not in doctor.host.ip("address")


def test_after_a_restart_the_address_is_back(doctor: Doctor) -> None:
    """The copy has ended with its host; the configuration of the host has brought the address."""
    doctor.host.ip("address", "add", f"{SERVICE}/32", "dev", "lo")
    doctor.journal(SOURCE, "committed").close()
    doctor.clears("journal", "address")
    assert SERVICE not in doctor.host.ip("address")


def test_a_destination_that_has_not_committed_leaves_nothing(doctor: Doctor) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.host.add_address(SERVICE)
        doctor.journal(DESTINATION, "taking-over", pid=pid, ticks=before).close()
        pair.server.close()
        doctor.clears("journal", "process", "sockets", "table")
        assert set(thread_states(pid).values()) <= {"Z"}
        assert SERVICE not in doctor.host.ip("address"), "undoing takes it off"


def test_a_destination_that_has_committed_goes_on_and_stays_to_be_asked(doctor: Doctor) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.journal(DESTINATION, "committed", pid=pid, ticks=before).close()
        found = keys(doctor.look())
        assert sorted(found) == [
            ("journal", RECOVER), ("process", CLEAR), ("sockets", CLEAR), ("table", CLEAR),
        ]  # fmt: skip
        done = doctor.fix()
        assert keys(done["left"]) == [("journal", RECOVER)] and len(done["cleared"]) == 3
        assert runs(pid) and not repaired(pair.server) and TABLE not in doctor.tables()
        doctor.keeps(("journal", RECOVER))


@pytest.mark.parametrize("state", ["rolled-back", "migrated"])
def test_a_source_whose_journal_is_over(doctor: Doctor, state: str) -> None:
    doctor.journal(SOURCE, state).close()
    doctor.lock()
    doctor.clears("journal", "table")


def test_journals_that_cannot_be_gone_by_are_never_settled(doctor: Doctor) -> None:
    directory = doctor.places.journals
    (directory / f"{ID}-{SOURCE}").write_bytes(b"SFJ2 of another time")
    (directory / f"{OTHER}-{SOURCE}").write_bytes(b"nothing of ours")
    doctor.lock()
    doctor.images(OTHER)
    doctor.keeps(("journal", HAND), ("journal", HAND), ("table", HAND), ("images", HAND))
    assert len(os.listdir(directory)) == 2


def test_an_agent_that_died_before_its_first_line(doctor: Doctor) -> None:
    Journal.create(ID, SOURCE, doctor.places.journals).close()
    doctor.images()
    doctor.clears("journal", "images")
    assert os.listdir(doctor.places.journals) == []


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_what_belongs_to_a_living_agent_is_left(doctor: Doctor, role: str) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        state = "frozen" if role == SOURCE else "restoring"
        open_journal = doctor.journal(role, state, pid=pid, ticks=before)
        doctor.keeps()
        (under_way,) = doctor.look()["under_way"]
        assert under_way == {"id": ID, "role": role, "state": state, "pid": pid}
        assert set(thread_states(pid).values()) == {"T"} and repaired(pair.server)
        assert path.exists() and TABLE in doctor.tables()
        open_journal.close()


def test_an_agent_that_has_begun_since_the_look_keeps_what_is_its(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.lock()
    path = doctor.images()
    begun: list[Journal] = []

    def look_and_begin(places: Places) -> Any:
        judged = looking.look(places)
        if not begun:
            begun.append(doctor.journal(SOURCE, "frozen"))
        return judged

    monkeypatch.setattr(clearing, "look", look_and_begin)
    done = doctor.fix()
    assert path.exists() and TABLE in doctor.tables()
    assert done["errors"] and all("under way" in one for one in done["errors"])
    begun[0].close()


# --- processes


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
    arguments = [str(ROOT), ID, SOURCE, str(doctor.places.journals), str(watched), str(agent)]
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, *arguments], pass_fds=(watched,), stdin=subprocess.DEVNULL
    )
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


def test_what_ends_by_itself_is_no_leftover(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.lock()
    doctor.places = dataclasses.replace(doctor.places, patience=10)
    gather = looking.gather
    looks: list[int] = []

    def gather_once(places: Places) -> Any:
        seen = gather(places)
        if not looks:
            apply.run(render.unlock(ID))
        looks.append(1)
        return seen

    monkeypatch.setattr(looking, "gather", gather_once)
    assert doctor.look()["findings"] == []
    assert len(looks) == 2


def test_looking_at_journals_of_a_migration_that_begins_and_one_that_ends(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = doctor.journal(SOURCE, "frozen")
    doctor.lock()
    doctor.lock(OTHER)
    look, made = journals.look, []

    def look_and_go_on(directory: Path) -> Any:
        found = look(directory)
        if not made:
            first.remove()
            made.append(doctor.journal(SOURCE, "frozen", migration=OTHER))
        return found

    monkeypatch.setattr(journals, "look", look_and_go_on)
    assert not doctor.host.run(looking.gather, doctor.places).notes
    seen = {one.id: one.busy for one in doctor.host.run(looking.gather, doctor.places).journals}
    assert seen == {OTHER: True}
    made[0].close()


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
