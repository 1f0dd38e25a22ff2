"""The probe of a process: real processes with real descriptors, on this machine's kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from agent import probe
from agent.probe.errors import (
    AgentItself,
    KernelThread,
    NoSuchProcess,
    NotAProcess,
    Zombie,
)
from agent.probe.facts import ProcessFacts, validate
from orchestrator.refusals import TABLE, refusal
from tests.support.netns import Namespace

Start = Callable[..., int]

# It says that it is ready by closing its standard output: then no pipe leads out of it.
_PRELUDE = """
import os, socket, sys, time, mmap, struct, ctypes, select, threading, subprocess, signal
READY = os.dup(1)
null = os.open("/dev/null", os.O_RDWR); os.dup2(null, 1); os.close(null)
"""
_EPILOGUE = """
os.write(READY, b"ready"); os.close(READY)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python process with this code, and waits until it sleeps."""
    running: list[subprocess.Popen[bytes]] = []

    def run(code: str, **options: Any) -> int:
        done = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code) + _EPILOGUE],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
                "cwd": "/",
                "start_new_session": True,
                **options,
            },
        )
        running.append(done)
        assert done.stdout is not None
        assert done.stdout.read() == b"ready"
        return done.pid

    yield run
    for one in running:
        with contextlib.suppress(ProcessLookupError):  # its children are in its session
            os.killpg(one.pid, signal.SIGKILL)
        one.kill()
    for one in running:
        one.communicate()


def look(pid: int) -> ProcessFacts:
    """The facts as they arrive at the other side."""
    sent = msgpack.unpackb(msgpack.packb(asyncio.run(probe.process(pid=pid))))
    facts = validate(sent, ProcessFacts, "facts")
    for one in facts["obstacles"]:
        assert one["code"] in TABLE
        refusal(one["code"], **one["fields"])  # has all the words need
    return facts


def obstacles(pid: int) -> list[tuple[str, str]]:
    """(code, all fields as one text)"""
    return [
        (one["code"], " ".join(str(value) for value in one["fields"].values()))
        for one in look(pid)["obstacles"]
    ]


def test_an_ordinary_process(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 1000)
    pid = start(
        f"""
        data = open({str(tmp_path / "data")!r}, "rb")
        log = open({str(tmp_path / "log")!r}, "a")
        listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(7)
        client = socket.create_connection(listener.getsockname()); accepted = listener.accept()
        six = socket.socket(socket.AF_INET6); six.bind(("::", 0)); six.listen()
        udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
        closed = socket.socket()
        pair = socket.socketpair(); pipe = os.pipe()
        event = os.eventfd(0) if hasattr(os, "eventfd") else None
        poll = select.epoll(); poll.register(pair[0])
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        memory = mmap.mmap(-1, 4 << 20); memory.write(b"m" * (4 << 20))
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        """
    )
    facts = look(pid)
    assert facts["obstacles"] == []
    root, child = facts["processes"]
    assert root["pid"] == facts["pid"] == pid
    assert (child["comm"], child["ppid"], child["sid"]) == ("sleep", pid, pid)
    assert len(root["threads"]) == 2
    assert root["namespaces"] == []
    assert not facts["shell_job"]
    assert facts["memory"] >= 4 << 20
    files = {one["path"]: one for one in facts["files"]}
    assert files[str(tmp_path / "data")]["size"] == 1000
    assert files[str(tmp_path / "log")]["size"] == -1  # it may grow
    program = files[os.path.realpath(sys.executable)]
    assert program["build_id"] or program["digest"]
    assert program["use"] == "program"
    assert files["/"]["kind"] == "directory"
    assert files["/dev/null"]["kind"] == "device"
    assert any("libc" in path for path in files)
    first, second = facts["listeners"]
    assert (first["address"], first["family"], first["backlog"], first["waiting"]) == (
        "127.0.0.1", 4, 7, 0,
    )  # fmt: skip
    assert (second["address"], second["family"], second["v6only"]) == ("::", 6, False)
    one, two = facts["connections"]
    assert one[1:3] == two[3:5] and one[3:5] == two[1:3]
    assert one.state == two.state == 1
    (bound,) = facts["bound"]
    assert (bound["protocol"], bound["address"]) == ("udp", "127.0.0.1")


def test_mapped_ipv4_is_told_as_ipv4(start: Start) -> None:
    pid = start(
        """
        listener = socket.socket(socket.AF_INET6); listener.bind(("::", 0)); listener.listen()
        client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        accepted = listener.accept()
        narrow = socket.socket(socket.AF_INET6)
        narrow.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        narrow.bind(("::1", 0)); narrow.listen()
        """
    )
    facts = look(pid)
    assert {one[:2] for one in facts["connections"]} == {(4, "127.0.0.1")}
    assert [(one["address"], one["v6only"]) for one in facts["listeners"]] == [
        ("::", False),
        ("::1", True),
    ]


@pytest.mark.parametrize(
    ("code", "words", "setup"),
    [
        ("mptcp", "127.0.0.1:",
          "s = socket.socket(2, 1, 262); s.bind(('127.0.0.1', 0)); s.listen()"),
        ("packet-socket", "", "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)"),
        ("raw-socket", "", "s = socket.socket(2, socket.SOCK_RAW, 1)"),
        ("socket", "AF_VSOCK", "s = socket.socket(40, socket.SOCK_STREAM)"),
        ("zero-copy", "127.0.0.1:",
         "s = socket.socket(); s.setsockopt(1, 60, 1); s.bind(('127.0.0.1', 0)); s.listen()"),
        ("descriptor", "io_uring",
         "s = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120))"),
        ("descriptor", "userfaultfd", "s = ctypes.CDLL(None).syscall(323, 1)"),
        ("descriptor", "pidfd", "s = os.pidfd_open(os.getppid())"),
        ("descriptor", "packet mode", "s = os.pipe2(os.O_DIRECT)"),
        ("descriptor", "net:[", "s = open('/proc/self/ns/net')"),
        ("descriptor", "/proc/1/", "s = open('/proc/1/stat')"),
        ("terminal", "/dev/ptmx", "s = os.openpty()"),
        ("device", "/dev/kmsg", "s = open('/dev/kmsg')"),
        ("deleted-file", "/tmp/sf-ghost",
         "s = open('/tmp/sf-ghost', 'w'); os.unlink('/tmp/sf-ghost');"
         "os.posix_fallocate(s.fileno(), 0, 65 << 20)"),
        ("unlinked-file", "/tmp/sf-one",
         "s = open('/tmp/sf-one', 'w'); os.link('/tmp/sf-one', '/tmp/sf-two');"
         "os.unlink('/tmp/sf-one'); "),
        ("shared-mapping", "/tmp/sf-shared", "f = open('/tmp/sf-shared', 'w+b'); f.truncate(4096);"
         "s = mmap.mmap(f.fileno(), 4096)"),
        ("sysv-memory", "SYSV", "l = ctypes.CDLL(None); l.shmat.restype = ctypes.c_void_p;"
         "i = l.shmget(0, 4096, 0o1600); s = l.shmat(i, None, 0); l.shmctl(i, 0, None)"),
        ("tcp-md5", "",
         "s = socket.socket(); s.setsockopt(6, 14, struct.pack('=H2sI120xBBHI80s',"
         "2, b'', 0x0100007f, 0, 0, 4, 0, b'test')); s.bind(('127.0.0.1', 0)); s.listen()"),
    ],
)  # fmt: skip
def test_what_cannot_move(start: Start, code: str, words: str, setup: str) -> None:
    try:
        pid = start(setup)
    except AssertionError:
        pytest.skip(f"this kernel has no {code} {words}")
    try:
        found = obstacles(pid)
    finally:
        for path in ("/tmp/sf-two", "/tmp/sf-shared"):
            Path(path).unlink(missing_ok=True)
    assert found, "nothing was found"
    assert {one for one, _ in found} == {code}
    assert words in found[0][1]
    if code not in ("shared-mapping", "sysv-memory"):
        assert f"of process {pid}" in found[0][1]


def test_a_file_that_was_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    pid = start(f"f = open({str(path)!r}); os.link({str(path)!r}, {str(path)!r} + '2')")
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").rename(path)
    found = obstacles(pid)
    assert [code for code, _ in found] in (["unlinked-file"], ["replaced-file"])
    assert str(path) in found[0][1]


def test_small_deleted_files_move(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "gone")
    pid = start(f"f = open({path!r}, 'w'); f.write('x'); f.flush(); os.unlink({path!r})")
    facts = look(pid)
    assert obstacles(pid) == []
    assert not any("gone" in one["path"] for one in facts["files"])


def test_names_that_are_not_utf8(start: Start, tmp_path: Path) -> None:
    path = bytes(tmp_path) + b"/\xff \xe2\x80\xa8\n(x"
    pid = start(f"f = open({path!r}, 'wb')")
    facts = look(pid)
    assert any("\\xff" in one["path"] for one in facts["files"])


def test_ends_outside_of_the_tree(start: Start, tmp_path: Path) -> None:
    name = str(tmp_path / "unix")
    server = start(
        f"s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(); a = []\n"
        "threading.Thread(target=lambda: a.append(s.accept()), daemon=True).start()"
    )
    client = start(f"s = socket.socket(socket.AF_UNIX); s.connect({name!r})")
    ((code, words),) = obstacles(client)
    assert code == "unix-outside"
    assert f"process {server} (" in words and name in words
    facts = look(server)
    assert facts["unix_names"] == [name]
    assert any(one["path"] == str(tmp_path) for one in facts["files"])


def test_a_pipe_to_its_own_child_is_fine(start: Start) -> None:
    pid = start("c = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)")
    assert obstacles(pid) == []
    child = look(pid)["processes"][1]["pid"]
    ((code, words),) = obstacles(child)
    assert code == "pipe-outside"
    assert f"process {pid} (" in words


def test_a_pipe_nobody_else_has_is_fine(start: Start) -> None:
    assert obstacles(start("a, b = os.pipe(); os.close(a); c, d = os.pipe(); os.close(d)")) == []


def test_a_fifo(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    pid = start(f"f = os.open({path!r}, os.O_RDWR)")
    assert obstacles(pid) == []
    kinds = {one["path"]: one["kind"] for one in look(pid)["files"]}
    assert kinds[path] == "fifo"
    other = start(f"f = os.open({path!r}, os.O_WRONLY)")
    ((code, words),) = obstacles(pid)
    assert code == "pipe-outside"
    assert f"process {other} (" in words


def test_a_socket_shared_with_the_parent(start: Start) -> None:
    pid = start(
        """
        s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
        child = os.fork()
        if child == 0: os.close(READY); time.sleep(600)
        """
    )
    facts = look(pid)
    assert facts["obstacles"] == []
    assert len(facts["listeners"]) == 1
    child = facts["processes"][1]["pid"]
    found = obstacles(child)
    assert [code for code, _ in found] == ["shared-socket"]
    assert f"process {pid} (" in found[0][1]


def test_states_of_a_process(start: Start) -> None:
    pid = start("pass")
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert look(pid)["processes"][0]["thread_states"] == "T"
    os.kill(pid, signal.SIGCONT)
    libc_ptrace = "ctypes.CDLL(None).ptrace"
    tracer = start(f"assert {libc_ptrace}(0x4206, {pid}, None, None) == 0")  # PTRACE_SEIZE
    assert look(pid)["processes"][0]["tracer"] == tracer


def test_a_job_of_a_session_elsewhere(start: Start) -> None:
    pid = start("pass", start_new_session=False)
    assert look(pid)["shell_job"]


def test_states_of_connections(start: Start) -> None:
    pid = start(
        """
        l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
        a = socket.create_connection(l.getsockname()); b, _ = l.accept(); a.shutdown(1)
        time.sleep(0.05)
        c = socket.create_connection(l.getsockname())
        """
    )
    facts = look(pid)
    assert sorted(one.state for one in facts["connections"]) == [1, 5, 8]  # FIN_WAIT2, CLOSE_WAIT
    assert facts["listeners"][0]["waiting"] == 1


def test_what_is_still_closing_is_counted(start: Start) -> None:
    pid = start(
        """
        l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
        a = socket.create_connection(l.getsockname()); b, _ = l.accept()
        b.close(); a.close()
        """
    )
    assert look(pid)["closing"] == {"TIME_WAIT": 1}


def test_another_network_namespace(start: Start) -> None:
    namespace = Namespace("probe")
    try:
        pid = namespace.run(start, "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()")
        facts = look(pid)
        assert facts["processes"][0]["namespaces"] == ["net"]
        assert facts["listeners"] == []
    finally:
        namespace.close()


def test_other_users_of_an_address(start: Start) -> None:
    script = """
        import asyncio, json, os, socket, subprocess, sys
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "address", "add", "10.99.0.1/24", "dev", "lo"], check=True)
        ours = socket.socket(); ours.bind(("10.99.0.1", 0)); ours.listen()
        child = subprocess.Popen(
            [sys.executable, "-c", "import socket, time; l = socket.socket();"
             "l.bind(('10.99.0.1', 7)); l.listen(); print(flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        child.stdout.readline()
        from agent import probe
        print(json.dumps(asyncio.run(probe.process(pid=child.pid))["others"] + [os.getpid()]))
        child.kill()
    """
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    (one, pid) = json.loads(done.stdout)
    assert (one["address"], one["state"], one["pid"]) == ("10.99.0.1", 10, pid)


def test_processes_that_must_not_move(start: Start) -> None:
    with pytest.raises(NoSuchProcess):
        look((1 << 22) - 1)
    for pid in (0, -5):
        with pytest.raises(NoSuchProcess):
            look(pid)
    for pid in (os.getpid(), os.getppid(), 1):
        with pytest.raises(AgentItself):
            look(pid)
    if Path("/proc/2/stat").exists() and "kthreadd" in Path("/proc/2/comm").read_text():
        with pytest.raises(KernelThread):
            look(2)
    pid = start("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    thread = max(map(int, os.listdir(f"/proc/{pid}/task")))
    with pytest.raises(NotAProcess) as caught:
        look(thread)
    assert caught.value.fields == {"pid": thread, "process": pid}
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Zombie):
        look(ended.pid)
    ended.wait()


def test_processes_that_end_meanwhile(start: Start) -> None:
    """Whatever the moment: facts, or that there is no such process; never anything else."""
    for _ in range(15):
        pid = start(
            "for _ in range(200): os.pipe()\n"
            "c = [subprocess.Popen(['sleep', '9'], close_fds=False) for _ in range(3)]"
        )
        threading.Timer(0.001, os.kill, (pid, signal.SIGKILL)).start()
        with contextlib.suppress(NoSuchProcess, Zombie):
            look(pid)


def test_many_connections_do_not_take_long(start: Start) -> None:
    pid = start(
        """
        l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(100); s = []
        for _ in range(1000):
            s.append(socket.create_connection(l.getsockname())); s.append(l.accept()[0])
        """
    )
    began = time.monotonic()
    assert len(look(pid)["connections"]) == 2000
    assert time.monotonic() - began < 1.5
