"""What is done for a dead agent with sockets that have no peer's name, and with PIDs used again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.freeze import Tree
from agent.history import Entry, History
from agent.kernel import proc, uapi
from agent.protocol import DESTINATION, SOURCE
from agent.successor import Successor
from agent.tcp.dumping import dump
from tests.support import hostile
from tests.support.netns import Host
from tests.support.tcp import begin_connect, connected, deaf, state


def successor(role: str, pid: int, **facts: object) -> Successor:
    plan = replace(hostile.PLAN, pid=pid, tree=(pid,)).to_wire()
    entries = [
        Entry("ready", 0.0, {"plan": plan, "boot": proc.boot_id(), "born": proc.born(pid)}),
        Entry("restoring", 0.0, {"ticks": 1}),
        Entry("", 0.0, dict(facts)),
    ]
    return Successor(History(hostile.ID, role, entries))


def repaired(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR))


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_an_opening_connection_leaves_repair_mode(
    pair: tuple[Host, Host], family: int, role: str
) -> None:
    server, client = pair
    with deaf(client), begin_connect(client, server.address(family), 9) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR, 1)
        with sock.dup() as stolen:
            successor(role, os.getpid())._release(stolen, {})
        assert not repaired(sock) and state(sock) == uapi.TCP_SYN_SENT


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_one_that_was_reset_meanwhile_leaves_it_too(
    pair: tuple[Host, Host], family: int, role: str
) -> None:
    with connected(*pair, family) as held:
        dump(held.server)
        held.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        held.client.close()
        with held.server.dup() as stolen, contextlib.suppress(OSError):
            successor(role, os.getpid())._release(stolen, {})
        assert not repaired(held.server)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_a_later_process_with_its_pid_is_not_the_copy(
    sleeper: subprocess.Popen[bytes], role: str
) -> None:
    pid, born = sleeper.pid, proc.born(sleeper.pid)
    assert successor(role, pid, births=[[pid, born]]).living == [pid]
    another = successor(role, pid, births=[[pid, born - 1]])
    assert another.living == []
    another.kill()
    assert sleeper.poll() is None


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_one_that_was_killed_does_not_live_until_its_parent_asks(
    sleeper: subprocess.Popen[bytes], role: str
) -> None:
    copy = successor(role, sleeper.pid, births=[[sleeper.pid, proc.born(sleeper.pid)]])
    copy.kill()
    assert proc.born(sleeper.pid)  # a zombie: its parent is this test
    assert copy.living == []


def test_a_tree_whose_killing_was_cut_short_is_found_whole() -> None:
    """By its members; and the root, which leads to them, is killed last."""
    script = "sleep 1000 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        child = int(root.stdout.readline())
        tree = Tree(root.pid)
        with contextlib.closing(tree):
            tree.refresh()
            births = tree.births
        assert [pid for pid, _ in births] == [root.pid, child]
        root.kill()
        root.wait()
        left = successor(SOURCE, root.pid, births=births)
        assert left.living == [child]
        os.kill(child, signal.SIGKILL)
