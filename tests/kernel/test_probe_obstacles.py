"""What the probe finds of a process that cannot move: one of each kind, for real."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Start, look, obstacles, processes


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


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
        ("socket", "513 instructions",
         "s = socket.socket(); p = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 9)"
         " * 513); s.setsockopt(1, 26, struct.pack('@HP', 513, ctypes.addressof(p)));"
         "s.bind(('127.0.0.1', 0)); s.listen()"),
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


def test_a_file_of_a_mount_that_is_gone(start: Start, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "sf-test", tmp_path], check=True)
    try:
        pid = start(f"f = open({str(tmp_path / 'file')!r}, 'w')")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    ((code, words),) = obstacles(pid)
    assert code == "foreign-mount"
    assert f"of process {pid}" in words
