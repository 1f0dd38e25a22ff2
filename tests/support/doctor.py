"""The doctor of one host in a namespace, and a connection that somebody left frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.freeze import thread_states
from agent.journal import Journal
from agent.kernel import proc, uapi
from agent.leftovers import clearing, looking
from agent.leftovers.facts import Fixed, Look
from agent.leftovers.seen import Places
from agent.netlock import apply, render
from agent.probe.facts import validate
from tests.support.leftovers import ID, journal, keys
from tests.support.netns import Host, wait_until
from tests.support.tcp import Pair, connected

# A process with one socket, which it is handed.
_HOLDER = "import os,sys,time; os.write(int(sys.argv[2]), b'1'); time.sleep(600)"


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
