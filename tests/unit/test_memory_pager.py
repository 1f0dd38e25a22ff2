"""What the pager tells the agent, and when it lets go; its work is tested on real processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from agent.memory import pager as module
from agent.memory.pager import Pager
from agent.memory.space import Space
from agent.memory.store import PAGE
from tests.support.memory import memory_directory, pages


class Agent:
    """The agent's end."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.pager = Pager(theirs)

    def heard(self) -> list[dict[str, Any]]:
        messages = []
        try:
            while data := self.socket.recv(1 << 16):
                messages.append(msgpack.unpackb(data))
        except BlockingIOError:
            pass
        return messages


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.socket.close()
    if agent.pager._control is not None:
        agent.pager._control.close()


def test_an_agent_that_does_not_listen_is_told_in_the_end(agent: Agent) -> None:
    """Else it would wait for ever for what was said while its queue was full."""
    pager = agent.pager
    pager._filling = pager._restored = True
    while not pager._unsaid:
        pager._say(left=1)
    pager._tell()
    assert pager._filled and pager._patience() is not None
    assert {"filled": True, "faults": 0} not in agent.heard()
    pager._tell()
    assert pager._filled and agent.heard()[-1] == {"filled": True, "faults": 0}
    assert pager._patience() is None, "and then it sleeps"


def test_all_is_in_place_when_nobody_listens(agent: Agent) -> None:
    agent.socket.close()
    agent.pager._filling = agent.pager._restored = True
    agent.pager._tell()
    assert agent.pager._filled


def test_not_before_all_is_restored(agent: Agent) -> None:
    agent.pager._filling = True
    agent.pager._tell()
    assert not agent.pager._filled and agent.pager._patience() is None


def test_what_waits_is_tried_again_shortly_though_nobody_fills(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    store = os.memfd_create("test")
    space = Space(0, 0, 9999, store, os.memfd_create("missing"))
    space._touched.append(0)
    monkeypatch.setattr(Space, "serve", lambda self, _: served.append(self))
    agent.pager._spaces[9999] = space
    assert agent.pager._patience() == module._SHORTLY
    agent.pager._serve()
    assert served == [space]
    os.close(store)


def test_the_images_say_which_pages_are_left(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a process that CRIU gives, of which nothing was sent, is one, too."""
    with memory_directory() as directory:
        monkeypatch.chdir(directory)
        (directory / "memory-7").write_bytes(pages(0, 10))
        monkeypatch.setattr(module, "page_ranges", lambda image: ([(2 * PAGE, 4 * PAGE)], []))
        monkeypatch.setattr(module, "lazy_mappings", lambda image: [])
        for pid in (7, 8):
            (directory / f"pagemap-{pid}.img").write_bytes(b"")
            (directory / f"mm-{pid}.img").write_bytes(b"")
            watched, other = os.pipe()  # in place of a userfaultfd
            agent.pager._begin(pid, watched)
            os.close(other)
        lefts = {one.pid: one.left for one in agent.pager._spaces.values()}
        assert lefts == {7: 2 * PAGE, 8: 0}
        _, fds, _, _ = socket.recv_fds(agent.socket, 1 << 16, 2)
        assert os.pread(fds[1], 2 * PAGE, 2 * PAGE) == pages(2, 2)
        for fd in fds:
            os.close(fd)
        for space in list(agent.pager._spaces.values()):
            agent.pager._gone(space)
        assert agent.pager._spaces == agent.pager._ends == {}
