"""examples/handover.py does what docs/tcp-engine.md says of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.lab import ROOT
from tests.support.netns import Host
from tests.support.tcp import AF

PROGRAM = ROOT / "examples" / "handover.py"
SERVICE = {4: "10.99.0.77/24", 6: "fd99::77/64"}
PORT, CONTROL = 7000, 7001


class Process:
    """The example on a host."""

    def __init__(self, host: Host, role: str, family: int, control: str) -> None:
        command = [sys.executable, str(PROGRAM), role, SERVICE[family], "eth0", str(PORT)]
        self.process = host.run(
            subprocess.Popen,
            [*command, "--control", f"{control}:{CONTROL}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def says(self, text: str) -> None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        assert ready, f"it does not say {text!r}"
        line = self.process.stdout.readline()
        assert line.startswith(text), line

    def hand_over(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def started(trio: tuple[Host, Host, Host], family: int) -> Iterator[list[Process]]:
    source, destination, _ = trio
    with contextlib.ExitStack() as undo:
        made = []
        for host, role in ((destination, "take"), (source, "serve")):
            made.append(Process(host, role, family, destination.address4))
            undo.callback(made[-1].close)
            made[-1].says("ready" if role == "take" else "serving 0 connections")
        yield made


def answered(client: socket.socket, line: bytes = b"line\n") -> bytes:
    client.sendall(line)
    return client.recv(100)


def connections(host: Host, family: int, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        client = host.socket(AF[family], socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect((SERVICE[family].partition("/")[0], PORT))
        made.append(client)
    return made


def test_the_connections_go_on(
    trio: tuple[Host, Host, Host], family: int, started: list[Process]
) -> None:
    source, destination, client = trio
    taker, server = started
    held = connections(client, family, 3)
    for number, one in enumerate(held):
        for count in range(1, number + 2):
            assert answered(one) == b"%d\n" % count
    held[2].shutdown(socket.SHUT_WR)
    server.hand_over()
    server.says("handed over")
    assert server.process.wait(10) == 0
    taker.says("serving 2 connections")
    if family == 6:
        client.ip("neigh", "flush", "dev", "eth0")
    for number, one in enumerate(held[:2]):
        assert answered(one) == b"%d\n" % (number + 2)
    held += connections(client, family, 1)
    assert answered(held[-1]) == b"1\n"
    for one in held:
        one.close()
    for host in (source, destination):
        assert "handover" not in host.command("nft", "list", "tables")


def test_the_other_host_gives_up(
    trio: tuple[Host, Host, Host], family: int, started: list[Process]
) -> None:
    """What cannot be handed over goes on where it was, and the destination is silent again."""
    source, destination, client = trio
    taker, server = started
    held = connections(client, family, 2)
    assert answered(held[0]) == b"1\n"
    prefix = SERVICE[family].partition("/")[0]
    # The destination cannot restore: somebody has the port there.
    destination.add_address(prefix)
    with destination.socket(AF[family], socket.SOCK_STREAM) as taken:
        taken.bind((prefix, PORT))
        taken.listen()
        server.hand_over()
        taker.process.wait(10)
    assert taker.process.returncode != 0
    server.says("not handed over: ")
    destination.ip("address", "delete", SERVICE[family], "dev", "eth0")
    client.ip("neigh", "flush", "dev", "eth0")
    assert answered(held[0]) == b"2\n"
    assert answered(held[1]) == b"1\n"
    for host in (source, destination):
        assert "handover" not in host.command("nft", "list", "tables")
    for one in held:
        one.close()
