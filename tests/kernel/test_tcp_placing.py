"""Sockets are put into a stopped process, under their numbers, and into its epoll sets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from agent.errors import ProtocolError
from agent.freeze import thread_states
from agent.kernel import epoll
from agent.tcp.placing import Places, PlacingFailed, place, watch
from agent.tcp.steal import list_descriptors, steal
from agent.tcp.watched import look
from tests.support.netns import wait_until

_PROGRAM = """
import fcntl, json, os, select, sys
poll = select.epoll()
print(poll.fileno(), flush=True)
for line in sys.stdin:
    known = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            known[name] = [os.fstat(int(name)).st_ino, fcntl.fcntl(int(name), fcntl.F_GETFD)]
        except OSError:
            pass  # that of the directory
    print(json.dumps({"fds": known, "ready": sorted(poll.poll(0.05))}), flush=True)
"""


class Target:
    """A process with an epoll set, which tells what it has."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.epoll = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        assert isinstance(answer, dict)
        return answer

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        wait_until("it is stopped", self.is_stopped)
        yield
        wait_until("it is stopped again", self.is_stopped)  # before it runs, but not at once
        os.kill(self.pid, signal.SIGCONT)

    def is_stopped(self) -> bool:
        return set(thread_states(self.pid).values()) == {"T"}

    def end(self) -> None:
        os.close(self.pidfd)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.end()


class Sockets:
    """Pairs of sockets, one end of each by inode."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.ours = {os.fstat(one.fileno()).st_ino: one for one, _ in pairs}
        self.others = {os.fstat(one.fileno()).st_ino: other for one, other in pairs}
        self.inodes = list(self.ours)

    def close(self) -> None:
        for sock in (*self.ours.values(), *self.others.values()):
            sock.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    found = Sockets(300)
    yield found
    found.close()


def test_they_get_their_numbers_and_flags(target: Target, sockets: Sockets) -> None:
    """With gaps, some of them to be kept over an exec, in more than one batch."""
    before = target.ask()["fds"]
    rows = [
        (20 + number + number // 7, inode, number % 100 < 60)
        for number, inode in enumerate(sockets.inodes)
    ]
    with target.stopped():
        place(target.pid, target.pidfd, rows, sockets.ours)
    after = target.ask()["fds"]
    assert after == before | {str(fd): [inode, int(cloexec)] for fd, inode, cloexec in rows}


def test_an_epoll_set_tells_of_them(target: Target, sockets: Sockets) -> None:
    """Under the number and with the data of that process, also where ours has them crosswise."""
    mine = {sock.fileno(): inode for inode, sock in sockets.ours.items()}
    fds = sorted(mine)  # of ours, given to another socket each
    rows = [[fd, mine[other]] for fd, other in zip(fds, reversed(fds), strict=True)]
    with target.stopped():
        place(target.pid, target.pidfd, [(*row, True) for row in rows], sockets.ours)
        watched = [[fd, select.EPOLLIN, fd << 32 | 7, inode] for fd, inode in rows]
        watch(target.pidfd, target.epoll, watched, sockets.ours)
        watch(target.pidfd, target.epoll, watched[:5], sockets.ours)  # a second time is no error
        seen = {(one.fd, one.data, one.inode) for one in epoll.watches(target.pid, target.epoll)}
    assert seen == {(fd, data, inode) for fd, _, data, inode in watched}
    for fd, inode in rows[::50]:
        sockets.others[inode].send(b"x")
        assert epoll.is_watched(target.pid, target.epoll, fd)
    ready = target.ask()["ready"]
    assert ready == [[7, select.EPOLLIN]] * len(rows[::50])  # Python shows half of the data


def test_a_number_that_is_taken_is_refused(target: Target, sockets: Sockets) -> None:
    before = target.ask()["fds"]
    with target.stopped(), pytest.raises(PlacingFailed, match="has a descriptor 2"):
        place(target.pid, target.pidfd, [(2, sockets.inodes[0], True)], sockets.ours)
    assert target.ask()["fds"] == before


def test_a_number_over_the_limit_is_refused(target: Target, sockets: Sockets) -> None:
    before = target.ask()["fds"]
    with target.stopped(), pytest.raises(PlacingFailed, match="leaves no room"):
        place(target.pid, target.pidfd, [(1 << 29, sockets.inodes[0], True)], sockets.ours)
    assert target.ask()["fds"] == before


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"places": [], "watched": None},
        {"places": [[1]], "watched": []},
        {"places": [[1, [[-1, 5, True]]]], "watched": []},
        {"places": [[1, [[3, 5, 1]]]], "watched": []},
        {"places": [], "watched": [[1, 4, [[3, 1 << 32, 0, 5]]]]},
        {"places": [], "watched": [[1, 4, [[3, 1, -1, 5]]]]},
        {"places": [[1, [[3, "5", True]]]], "watched": []},
    ],
)
def test_malformed_places_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Places.from_wire(record)


def test_each_socket_has_to_have_its_place() -> None:
    places = Places.from_wire(
        {"places": [[1, [[3, 5, True]]]], "watched": [[1, 4, [[3, 1, 0, 5]]]]}
    )
    places.check({5})
    for others in (set(), {5, 6}, {6}):
        with pytest.raises(ProtocolError):
            places.check(others)


def test_a_set_is_sound_where_the_numbers_are_what_they_seem() -> None:
    """Not where a number was closed, and is another socket now, while the first is still open."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)
        poll = stack.enter_context(select.epoll())
        poll.register(listener, select.EPOLLIN)
        poll.register(reading, select.EPOLLIN)
        pid, pidfd = os.getpid(), os.pidfd_open(os.getpid())
        stack.callback(os.close, pidfd)

        def found() -> Any:
            descriptors = list_descriptors([pid])
            descriptors.epolls = [(pid, poll.fileno())]  # the test's own others may be there
            inode = os.fstat(listener.fileno()).st_ino
            place = {inode: descriptors.sockets[inode]}
            stolen = steal({pid: pidfd}, place)
            for sock in stolen.values():
                sock.close()
            return look(descriptors, stolen)

        seen = found()
        assert seen.sound
        ((_, fd, rows),) = seen.rows
        assert fd == poll.fileno()
        assert [row[0] for row in rows] == [listener.fileno()]
        other = stack.enter_context(socket.socket())
        poll.register(other, select.EPOLLIN)
        kept = stack.enter_context(other.dup())
        os.dup2(listener.fileno(), other.fileno())
        assert kept.fileno() >= 0
        assert not found().sound
