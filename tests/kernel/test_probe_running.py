"""What runs here and by what it can be named; and whether a service is well."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from agent import probe
from agent.errors import ProtocolError
from agent.kernel import proc
from agent.probe.facts import validate
from agent.probe.running import Running
from agent.probe.service import HealthFacts
from tests.support.polling import until

PROGRAM = """
import socket, sys
one = socket.create_server(("127.0.0.1", 0))
six = socket.create_server(("::", 0), family=socket.AF_INET6)
print(one.getsockname()[1], six.getsockname()[1], flush=True)
sys.stdin.read()
"""


def workloads(*pid_files: Path) -> Running:
    found = asyncio.run(probe.workloads(pid_files=[str(one) for one in pid_files]))
    return validate(msgpack.unpackb(msgpack.packb(found)), Running, "running")


def health(kind: str, what: str, seconds: float = 5) -> HealthFacts:
    return validate(asyncio.run(probe.health(kind, what, seconds)), HealthFacts, "health")


@pytest.fixture
def listener() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    environment = {**os.environ, "STREAMFERRY_LABELS": "app=web, tier=a/b,bad label=x,=y"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "marked"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        yield process, [int(word) for word in process.stdout.readline().split()]
        process.kill()


def test_a_process_and_what_names_it(listener: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, ports = listener
    (found,) = (one for one in workloads()["processes"] if one["pid"] == process.pid)
    assert (found["ppid"], found["sid"]) == (os.getpid(), process.pid)
    assert found["born"] == proc.born(process.pid) > 0
    assert found["command"].endswith("marked") and found["memory"] > 0
    assert found["labels"] == {"app": "web", "tier": "a/b"}
    assert sorted(found["listening"]) == sorted([("127.0.0.1", ports[0]), ("::", ports[1])])
    assert found["addresses"] == []  # no loopback, no wildcard


def test_who_asks_is_not_among_them() -> None:
    own = {one["pid"] for one in workloads()["processes"]}
    assert not own & set(proc.ancestors(os.getpid()))
    kernel = {pid for pid in own if proc.stat(pid).flags & proc.PF_KTHREAD}
    assert kernel == set()


def test_pid_files(tmp_path: Path) -> None:
    contents = {"own": f" {os.getpid()}\n", "gone": "4194303", "none": "abc", "zero": "0"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "pipe")
    names = [*contents, "pipe", "missing"]
    found = workloads(*(tmp_path / name for name in names))["pid_files"]
    assert [one["pid"] for one in found] == [os.getpid(), 0, 0, 0, 0, 0]
    said = [one["problem"] for one in found]
    assert said[0] == "" and "has ended" in said[1] and "no PID" in said[2] and "No such" in said[5]


@pytest.mark.parametrize("files", [["relative"], [5], "/x", ["/a"] * 257, ["/a\0b"]])
def test_no_pid_files(files: list[str]) -> None:
    with pytest.raises(ProtocolError):
        asyncio.run(probe.workloads(pid_files=files))


def test_health_by_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        what = f"127.0.0.1 {server.getsockname()[1]}"
        assert health("tcp", what)["healthy"]
    found = health("tcp", what)
    assert not found["healthy"] and "refused" in found["detail"]


@pytest.mark.parametrize(("status", "well"), [(200, True), (302, True), (404, False), (503, False)])
def test_health_by_http(status: int, well: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                assert b"GET /ready?x=1 HTTP/1.1" in sock.recv(4096)
                sock.sendall(f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        found = health("http", f"http://127.0.0.1:{server.getsockname()[1]}/ready?x=1")
        thread.join()
    assert found == {"healthy": well, "detail": f"it answers with status {status}"}


def test_health_of_one_who_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = health("http", f"http://127.0.0.1:{server.getsockname()[1]}/", 0.2)
    assert found == {"healthy": False, "detail": "no answer within 0.2 s"}


def test_health_by_a_command(tmp_path: Path) -> None:
    assert health("command", "echo fine; exit 0")["healthy"]
    found = health("command", "echo one; echo two >&2; exit 3")
    assert found == {"healthy": False, "detail": "the command ended with status 3: two"}
    mark = tmp_path / "pid"
    found = health("command", f"sleep 1000 & echo $! > {mark}; wait", 0.3)
    assert found["detail"] == "no answer within 0.3 s"
    asyncio.run(until(lambda: _ended(int(mark.read_text()))))  # with the shell


def _ended(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}") or proc.stat(pid).state in "ZX"


@pytest.mark.parametrize(
    ("kind", "what", "seconds"),
    [
        ("ping", "x", 1), ("tcp", "x", 1), ("tcp", "::1 http", 1), ("http", "https://a/", 1),
        ("http", "http://a:b/", 1), ("tcp", "a 1", 0), ("tcp", "a 1", 1e9), ("tcp", None, 1),
        ("tcp", "a 1", float("nan")),
    ],
)  # fmt: skip
def test_questions_that_make_no_sense(kind: str, what: str, seconds: float) -> None:
    with pytest.raises(ProtocolError):
        asyncio.run(probe.health(kind, what, seconds))
