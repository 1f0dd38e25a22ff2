"""Another user on the host, without any capability, against what an agent has there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.image.store import ImagesDirectory, ImageStore
from agent.journal import JournalError, open_directory
from agent.kernel.syscalls import pidfd_getfd

ROOT = Path(__file__).resolve().parents[2]
ID = "20261125-120000-abcdef"
NOBODY = 65534
PTRACE_ATTACH = 16  # include/uapi/linux/ptrace.h

# What an agent holds: a journal and its guardian, images, a socket to CRIU, its archive.
HOLDER = f"""
import os, socket, sys
from pathlib import Path
from agent.custody import Custody
from agent.image.store import ImageStore
from agent.plan import Plan
from agent.protocol import DESTINATION
place = sys.argv[1]
os.umask(0)
plan = Plan("{ID}", 1 << 22, (1 << 22,), (), (), 0, False)
custody = Custody(plan, DESTINATION, Path(place, "lib", "journal"))
store = ImageStore(place + "/run", plan.id, 1 << 20)
store.write("core-1.img", b"secret")
pair = socket.socketpair()
archive = os.memfd_create("agent")
os.write(archive, b"code")
print(custody._guardian.pid, flush=True)
sys.stdin.read()
store.remove()
custody.end()
"""


class Holder:
    def __init__(self, place: str) -> None:
        self.place = Path(place)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, place],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.guardian = int(self.process.stdout.readline())
        self.pids = {"agent": self.process.pid, "guardian": self.guardian}


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # the other user gets as far as this
        one = Holder(place)
        yield one
        one.process.communicate()
        assert one.process.returncode == 0


def as_nobody(function: Callable[[], Any]) -> Any:
    """What it returns, or the class of the `OSError` that it raises, in a child that is nobody."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        result: Any = "it ended"
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)  # and no capability is left (capabilities(7))
            result = function()
        except OSError as error:
            result = type(error)
        finally:
            os.write(write, pickle.dumps(result))
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


def everything(holder: Holder) -> list[Path]:
    """All that there is below the holder's place, as root sees it."""
    return [path for path in holder.place.rglob("*")]


def test_the_child_is_nobody(holder: Holder) -> None:
    """Else the others would show nothing."""
    assert as_nobody(lambda: (os.geteuid(), os.getgroups())) == (NOBODY, [])
    names = {path.name for path in everything(holder)}
    assert {"core-1.img", f"{ID}-destination", "journal"} <= names
    assert as_nobody(lambda: sorted(os.listdir(holder.place))) == ["lib", "run"]
    assert as_nobody(lambda: Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
                     ) == "0" * 16  # fmt: skip


def check_directory(path: Path) -> None:
    assert as_nobody(lambda: os.listdir(path)) is PermissionError, path
    assert as_nobody(lambda: (path / "x").write_bytes(b"")) is PermissionError, path
    assert as_nobody(lambda: os.rename(path, f"{path}.x")) is PermissionError, path


def check_file(path: Path) -> None:
    assert as_nobody(path.read_bytes) is PermissionError, path
    assert as_nobody(lambda: os.open(path, os.O_WRONLY)) is PermissionError, path
    assert as_nobody(path.unlink) is PermissionError, path
    assert as_nobody(path.stat) is PermissionError, path


def check_descriptor(pid: int, number: int) -> None:
    at = f"/proc/{pid}/fd/{number}"
    assert as_nobody(lambda: os.open(at, os.O_RDONLY)) is PermissionError
    assert as_nobody(lambda: os.open(at, os.O_WRONLY)) is PermissionError
    assert as_nobody(lambda: os.readlink(at)) is PermissionError
    assert as_nobody(lambda: pidfd_getfd(os.pidfd_open(pid), number)) is PermissionError


def test_files_and_directories(holder: Holder) -> None:
    for path in everything(holder):
        check_directory(path) if path.is_dir() else check_file(path)
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("who", ["agent", "guardian"])
def test_descriptors_memory_and_signals(holder: Holder, who: str) -> None:
    pid = holder.pids[who]
    at = Path(f"/proc/{pid}")
    numbers = os.listdir(at / "fd")
    assert len(numbers) > 3
    assert as_nobody(lambda: os.listdir(at / "fd")) is PermissionError
    for number in numbers:
        check_descriptor(pid, int(number))
    for name in ("mem", "environ", "maps", "syscall"):
        assert as_nobody((at / name).read_bytes) is PermissionError, name
    assert as_nobody(lambda: os.listdir(at / "map_files")) is PermissionError
    assert as_nobody(lambda: os.kill(pid, signal.SIGKILL)) is PermissionError
    assert as_nobody(lambda: os.kill(pid, signal.SIGTERM)) is PermissionError
    assert as_nobody(lambda: attach(pid)) is PermissionError
    assert (at / "status").exists()


def attach(pid: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return pid


def test_no_socket_of_ours_has_a_name_and_none_listens(holder: Holder) -> None:
    own = set()
    for pid in holder.pids.values():
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                own.add(os.readlink(path))
    for table in ("unix", "tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = Path(f"/proc/{holder.process.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            inode = fields[6] if table == "unix" else fields[9]
            if f"socket:[{inode}]" in own:
                assert table == "unix" and len(fields) == 7, f"{table}: {line}"
    assert any(one.startswith("socket:") for one in own), "the pair is there"


@pytest.mark.parametrize("made", ["directory", "link", "link to one of ours"])
def test_what_another_user_has_made_before_us(made: str) -> None:
    """In /tmp, or wherever everybody may."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as ours:
        os.chmod(place, 0o1777)
        path = Path(place, "streamferry")
        theirs = Path(place, "theirs")
        as_nobody(theirs.mkdir)
        if made == "directory":
            as_nobody(path.mkdir)
        else:
            as_nobody(lambda: path.symlink_to(theirs if made == "link" else ours))
        assert path.lstat().st_uid == NOBODY
        for directory in (path, path / "below"):
            with pytest.raises(ImagesDirectory, match="use (another|a directory elsewhere)"):
                ImageStore(str(directory), ID, 100)
            with pytest.raises(JournalError, match="use (another|a directory elsewhere)"):
                open_directory(directory)
        assert not os.listdir(theirs) and not os.listdir(ours)


def test_what_another_user_sees_of_ours_in_a_place_for_all() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o1777)
        store = ImageStore(f"{place}/streamferry", ID, 100)
        store.write("core-1.img", b"secret")
        assert as_nobody(lambda: os.listdir(store.path.parent)) is PermissionError
        assert as_nobody(lambda: os.rename(store.path.parent, f"{place}/x")) is PermissionError
        assert as_nobody(lambda: (store.path / "core-1.img").read_bytes()) is PermissionError
        store.remove()
        assert os.listdir(place) == []


def test_a_pair_of_sockets_is_reached_by_nobody_else() -> None:
    """As CRIU's: it has no name, so there is nothing to connect to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert ours.getsockname() == theirs.getsockname() == ""
