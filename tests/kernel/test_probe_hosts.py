"""The probes of a host and of a destination, on this machine's kernel."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from agent import probe
from agent.errors import ProtocolError
from agent.kernel import proc, uapi
from agent.probe import machine, target
from agent.probe.facts import (
    DestinationFacts,
    FileFacts,
    HostFacts,
    OptionFacts,
    ProcessFacts,
    validate,
)
from agent.probe.files import Files, identity
from tests.support.facts import Case, established, info, listener
from tests.support.netns import Namespace


def host(images_dir: Path) -> HostFacts:
    facts = asyncio.run(probe.host(images_dir=str(images_dir)))
    return validate(msgpack.unpackb(msgpack.packb(facts)), HostFacts, "facts")


def destination(process: ProcessFacts) -> DestinationFacts:
    sent = msgpack.unpackb(msgpack.packb(process))
    facts = asyncio.run(probe.destination(process=sent, images_dir="/run/streamferry"))
    return validate(msgpack.unpackb(msgpack.packb(facts)), DestinationFacts, "facts")


@pytest.fixture
def process() -> ProcessFacts:
    """Facts of a process that fits here."""
    facts = Case().process
    facts["processes"] = [info(4194000, threads=[4194000, 4194001])]
    facts["connections"] = []
    facts["listeners"] = []
    return facts


def test_this_host(tmp_path: Path) -> None:
    facts = host(tmp_path / "images")
    assert facts["kernel"] == os.uname().release
    assert facts["uid"] == 0
    assert facts["missing_capabilities"] == []
    tried = ("nftables", "sock_diag", "tcp_repair", "raw_socket", "packet_socket", "choose_pid")
    assert {name: facts[name] for name in tried} == dict.fromkeys(tried)
    assert facts["memory_available"] > 1 << 20
    assert {one["address"] for one in facts["addresses"]} >= {"127.0.0.1"}
    assert facts["images"]["path"] == str(tmp_path)
    assert facts["images"]["problem"] is None
    assert list(tmp_path.iterdir()) == []
    assert facts["processes"] > 1


def test_the_identity_tells_containers_apart() -> None:
    assert machine._identity() == machine._identity()
    namespace = Namespace("probe")
    try:
        other = namespace.run(os.readlink, "/proc/thread-self/ns/net")
        assert other not in machine._identity()
    finally:
        namespace.close()
    lines = subprocess.run(
        ["unshare", "--net", "python3", "-c",
         "import os; print(os.readlink('/proc/self/ns/net'))"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert lines.stdout.strip() not in machine._identity()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_an_images_directory_of_others(tmp_path: Path, mode: int) -> None:
    images = tmp_path / "images"
    images.mkdir()
    images.chmod(mode)
    assert "others may use" in str(host(images)["images"]["problem"])
    images.chmod(0o700)
    assert host(images)["images"]["problem"] is None
    os.chown(images, 1, 1)
    assert "belongs to user 1:" in str(host(images)["images"]["problem"])


def test_an_images_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in str(host(tmp_path / "file")["images"]["problem"])
    (tmp_path / "link").symlink_to("/tmp")
    assert "is not a directory" in str(host(tmp_path / "link")["images"]["problem"])


def test_images_in_memory() -> None:
    assert host(Path("/dev/shm/streamferry"))["images"]["tmpfs"]
    assert "Read-only" in str(
        host(Path("/sys/streamferry"))["images"]["problem"]
    ) or "not permitted" in str(host(Path("/sys/streamferry"))["images"]["problem"])


def test_without_capabilities() -> None:
    """What a user without rights may do is found by trying; nothing raises."""
    # capset(2): version 3, this process, no capability at all
    code = (
        "import ctypes, json, struct; from agent.probe import machine\n"
        "header = struct.pack('=Ii', 0x20080522, 0)\n"
        "assert ctypes.CDLL(None).capset(header, bytes(24)) == 0\n"
        "print(json.dumps(machine.look('/run/streamferry')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    facts = validate(json.loads(done.stdout), HostFacts, "facts")
    assert "CAP_NET_ADMIN" in facts["missing_capabilities"]
    tried = (facts["nftables"], facts["tcp_repair"], facts["raw_socket"], facts["packet_socket"])
    assert all(tried) and facts["choose_pid"] and "not permitted" in facts["choose_pid"]


def test_options_that_sockets_have(process: ProcessFacts) -> None:
    """What cannot be set here is told, once; what no socket can have is not tried."""
    reno, nosuch = (name.ljust(16, b"\0").hex() for name in (b"reno", b"nosuch"))
    process["options"] = [
        OptionFacts(4, socket.IPPROTO_TCP, uapi.TCP_CONGESTION, 0, reno),
        OptionFacts(4, socket.IPPROTO_TCP, uapi.TCP_CONGESTION, 0, nosuch),
        OptionFacts(6, socket.IPPROTO_TCP, uapi.TCP_CONGESTION, 0, nosuch),
        OptionFacts(4, socket.SOL_SOCKET, uapi.SO_KEEPALIVE, 1, ""),
        OptionFacts(4, socket.SOL_SOCKET, uapi.SO_KEEPALIVE, 1 << 40, ""),
        OptionFacts(4, socket.SOL_SOCKET, uapi.SO_SNDBUFFORCE, 1, ""),
        OptionFacts(4, socket.SOL_SOCKET, uapi.SO_BINDTODEVICE, 0, "not hex"),
    ]
    assert destination(process)["missing_options"] == [
        {"option": "TCP_CONGESTION", "reason": "there is no congestion control 'nosuch'"}
    ]


def test_nothing_in_the_way(process: ProcessFacts) -> None:
    process["listeners"] = [listener("10.77.0.100", 6379), listener("::", 6380)]
    process["connections"] = [established("10.77.0.100", "10.77.0.13")]
    facts = destination(process)
    assert facts == {
        "taken": [], "files": [], "ports": [], "unix_names": [], "limits": [],
        "missing_options": [],
    }  # fmt: skip


def test_pids_and_threads_that_are_taken(process: ProcessFacts) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert thread.native_id is not None
    process["processes"] = [info(os.getpid(), threads=[os.getpid(), thread.native_id])]
    try:
        taken = destination(process)["taken"]
    finally:
        stop.set()
        thread.join()
    assert [(one["pid"], one["owner"]) for one in taken] == [
        (os.getpid(), os.getpid()),
        (thread.native_id, os.getpid()),
    ]
    assert taken[0]["comm"] == proc.comm(os.getpid())


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def ports(process: ProcessFacts) -> list[tuple[str, int, int]]:
    found = destination(process)["ports"]
    assert all(one["detail"] == "Address already in use" for one in found)
    return [(one["address"], one["port"], one["pid"]) for one in found]


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_is_taken(process: ProcessFacts, taken_port: int, text: str) -> None:
    process["listeners"] = [listener(text, taken_port)]
    assert ports(process) == [(text, taken_port, os.getpid())]


@pytest.mark.parametrize("text", ["127.0.0.2", "10.77.0.100", "::1", "fd77::100"])
def test_a_port_that_is_free(process: ProcessFacts, taken_port: int, text: str) -> None:
    process["listeners"] = [listener(text, taken_port), listener("::", taken_port, v6only=True)]
    assert ports(process) == []


def test_a_connection_whose_port_is_taken(process: ProcessFacts, taken_port: int) -> None:
    process["connections"] = [established("127.0.0.1", "10.77.0.13", port=taken_port)] * 2
    assert ports(process) == [("127.0.0.1", taken_port, os.getpid())]


def test_a_udp_port(process: ProcessFacts) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        one = {"protocol": "udp", "address": "0.0.0.0", "port": port, "family": 4}
        process["bound"] = [{**one, "pid": 5000, "fd": 1}]  # type: ignore[typeddict-item]
        assert ports(process) == [("0.0.0.0", port, 0)]


def test_a_unix_name(process: ProcessFacts) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0streamferry-test")
        process["unix_names"] = ["@streamferry-test", "@streamferry-other"]
        assert destination(process)["unix_names"] == ["@streamferry-test"]


def test_limits(process: ProcessFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    status = proc.status(os.getpid())
    monkeypatch.setattr(proc, "status", lambda pid: {**status, "CapEff": "0"})
    process["processes"] = []
    name, (_, hard) = "Max open files", resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (-1, hard, hard + 1):
        process["processes"].append(info(4194000, threads=[], limits={name: wanted, "Max odd": 1}))
    found = target.look(process)["limits"]
    assert [one["needed"] for one in found] == [-1, hard + 1]
    assert found[0]["limit"] == name
    assert found[0]["offered"] == hard


def file_of(path: Path, **options: Any) -> FileFacts:
    files = Files()
    files.add(str(path), 5000, "mapped", **options)
    (facts,) = files.list()
    return facts


def test_files(process: ProcessFacts, tmp_path: Path) -> None:
    def problem(facts: FileFacts) -> tuple[str, str] | None:
        process["files"] = [facts]
        found = destination(process)["files"]
        return (found[0]["problem"], found[0]["detail"]) if found else None

    path = tmp_path / "file"
    path.write_text("same size")
    plain, written, log = (
        file_of(path),
        file_of(path, content=True),
        file_of(path, sized=False),
    )
    assert [problem(one) for one in (plain, written, log)] == [None] * 3
    path.write_text("SAME SIZE")
    assert problem(plain) is problem(log) is None
    assert problem(written) == ("different", "its content is another")
    path.write_text("longer than before")
    assert problem(plain) == ("different", "it has 18 bytes, not 9")
    assert problem(log) is None
    path.chmod(0o600)
    assert problem(log) == ("different", "its mode is 600, not 644")
    path.unlink()
    assert problem(log) == ("missing", "")
    path.mkdir()
    assert problem(log) == ("other", "it is a directory, not a file")
    odd = {**log, "path": str(path / "x\0y")}
    assert problem(odd)[0] == "different"  # type: ignore[arg-type, index]


def test_programs(process: ProcessFacts, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/sh").read_bytes())
    program.chmod(0o755)
    facts = file_of(program)
    assert facts["build_id"] and not facts["digest"]
    content = program.read_bytes()
    changed = content.replace(bytes.fromhex(facts["build_id"]), b"\x55" * 20)
    program.write_bytes(changed)
    process["files"] = [facts]
    (found,) = destination(process)["files"]
    assert found["detail"] == "its build-id is another"
    start = content.index(b"GNU\0" + bytes.fromhex(facts["build_id"]))
    program.write_bytes(content[:start] + b"XNU\0" + content[start + 4 :])
    build_id, digest = identity(str(program), content=False)
    assert build_id == "" and len(digest) == 64


def test_malformed_facts() -> None:
    for bad in ({}, {"pid": 1}, {**Case().process, "pid": "1"}):
        with pytest.raises(ProtocolError):
            asyncio.run(probe.destination(process=bad, images_dir="/run"))
