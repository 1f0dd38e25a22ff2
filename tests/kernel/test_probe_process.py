"""The probe of a process: real processes with real descriptors, on this machine's kernel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel import uapi
from agent.probe.errors import (
    AgentItself,
    KernelThread,
    NoSuchProcess,
    NotAProcess,
    Zombie,
)
from agent.probe.facts import OptionFacts
from tests.support.netns import Namespace
from tests.support.processes import Start, look, processes


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


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


def test_options_of_tcp_sockets(start: Start) -> None:
    """Each once; what is as on a fresh socket is not told."""
    pid = start(
        """
        listeners = [socket.socket() for _ in range(3)]
        for one in listeners:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            one.bind(("127.0.0.1", 0)); one.listen()
        """
    )
    found = [OptionFacts(*one) for one in look(pid)["options"]]
    reno = b"reno".ljust(16, b"\0").hex()
    assert set(found) >= {
        OptionFacts(4, socket.SOL_SOCKET, uapi.SO_MARK, 7, ""),
        OptionFacts(4, socket.IPPROTO_TCP, uapi.TCP_CONGESTION, 0, reno),
    }
    assert len(found) == 2


def test_names_that_are_not_utf8(start: Start, tmp_path: Path) -> None:
    path = bytes(tmp_path) + b"/\xff \xe2\x80\xa8\n(x"
    pid = start(f"f = open({path!r}, 'wb')")
    facts = look(pid)
    assert any("\\xff" in one["path"] for one in facts["files"])


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


def test_a_process_that_may_not_be_looked_at(start: Start) -> None:
    pid = start("pass")
    # capset(2): version 3, this process, no capability at all
    code = f"""
        import asyncio, ctypes, struct
        from agent import probe
        from agent.errors import AgentError
        assert ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
        try: asyncio.run(probe.process(pid={pid}))
        except AgentError as error: print(error.code, error.message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith(f"not-permitted process {pid} may not be looked at: ")


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
