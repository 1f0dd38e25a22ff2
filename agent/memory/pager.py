"""A process at the destination that gives the restored processes their memory, and then ends.

CRIU's restore connects to it in place of CRIU's own lazy-pages daemon and hands it a userfaultfd
for each process. It serves what is touched and, once it is told to, fills in the rest. It needs
nobody: an agent that dies leaves it to its work. And the agent has all of its descriptors, so that
another can go on when this one is killed, and until then nobody sees zeros where memory should be.

Arguments: the images' directory, and the descriptor of a socket to the agent, on which both say
msgpack maps, one a message (SOCK_SEQPACKET). It says

    {"ready": True}                  CRIU may connect
    {"space": PID, "origin": PID}    with the descriptors of userfaultfd, store and list of what is
                                     missing (of a process that was forked, 0 for its PID)
    {"restored": True}               there is a space of each process
    {"left": bytes}                  now and then: not in its place yet
    {"want": PID, "runs": [[address, pages]]}    somebody waits for these of the source's pages
    {"placed": slot}                 what has arrived there has been taken
    {"complete": True}               nothing is missing any more
    {"filled": True, "faults": int}  all is in its place

and the agent {"fill": True}; {"inbox": slots} with a memory file of so many `arrivals.SLOT`;
{"pages": PID, "runs": [[address, pages, has data]], "slot": int} for what has arrived in one; and
{"end": True} when it has closed its descriptors: the last to be closed makes zeros of what was
never placed. Where an agent has died, another connects to `AGENTS`. A pager that goes on for
another has further arguments, PID:PID:FD:FD:FD each.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgpack

from agent.criu.images import lazy_mappings, page_ranges
from agent.kernel.userfault import Busy, Gone
from agent.memory import missing
from agent.memory.arrivals import Arrivals
from agent.memory.layout import PAGE
from agent.memory.missing import Missing
from agent.memory.ranges import Range, Ranges, split
from agent.memory.space import Buffer, Space, keep_only
from agent.memory.store import file_name

SOCKET = "lazy-pages.socket"  # as CRIU looks for it, in the images' directory
AGENTS = "pager.socket"
_RESTORED = 0x52535446  # what CRIU says when all is restored
_NUMBER = struct.Struct("=i")
_WORD = struct.Struct("=I")
_REPORT_EVERY = 0.2  # seconds
_LARGEST = 1 << 16  # bytes of a message
_SHORTLY = 1  # milliseconds until what the kernel was too busy for is tried again


class Pager:
    """Its state: CRIU's connection, the spaces, and whether to fill them."""

    def __init__(self, control: socket.socket) -> None:
        self._control: socket.socket | None = control
        self._listener: socket.socket | None = None
        self._agents: socket.socket | None = None
        self._arrivals: Arrivals | None = None
        self._unsaid: deque[dict[str, Any]] = deque()
        self._criu: socket.socket | None = None
        self._coming = 0  # the PID whose descriptor comes next
        self._spaces: dict[int, Space] = {}
        self._ends: dict[int, Space] = {}  # by pidfd
        self._buffer = Buffer()
        self._restored = False
        self._filling = False
        self._filled = self._complete = False  # and said so
        self._over = False
        self._faults = 0
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._reported = 0.0

    def await_criu(self) -> None:
        """Listen for a restore in the current directory."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(SOCKET)
        self._listener.listen(1)
        self._poll.register(self._listener, select.POLLIN)
        self._await_agents()
        self._say(ready=True)

    def _await_agents(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # that of the one before us
            os.unlink(AGENTS)
        self._agents = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._agents.bind(AGENTS)
        self._agents.listen(1)
        self._poll.register(self._agents, select.POLLIN)

    def go_on(self, spaces: list[Space]) -> None:
        """Take over from a pager that was killed after the restore."""
        for space in spaces:
            self._add(space, tell=False)
        self._restored = self._filling = True
        self._await_agents()

    def run(self) -> None:
        """Until every space is filled and nobody else has it, or nobody ever comes."""
        while not self._over:
            for fd, _ in self._poll.poll(self._patience()):
                self._ready(fd)
            self._serve()
            if self._filling and not self._filled:
                self._tell()
            self._flush()
            if self._control is None and self._criu is None:
                self._over = self._filled or not self._spaces

    def _patience(self) -> int | None:
        """Milliseconds to wait for something to happen."""
        spaces = self._spaces.values()
        if self._filling and any(one.left for one in spaces):
            return 0
        unsaid = bool(self._unsaid) or (
            self._filling and self._restored and not self._filled and not self._awaited
        )
        return _SHORTLY if unsaid or any(one.waiting for one in spaces) else None

    def _ready(self, fd: int) -> None:
        if fd in self._spaces:
            self._hear(self._spaces[fd])
        elif fd in self._ends:
            self._gone(self._ends[fd])
        elif self._control is not None and fd == self._control.fileno():
            self._told()
        elif self._agents is not None and fd == self._agents.fileno():
            self._another_agent(self._agents.accept()[0])
        elif self._criu is not None and fd == self._criu.fileno():
            self._from_criu(self._criu)
        elif self._listener is not None and fd == self._listener.fileno():
            self._criu = self._listener.accept()[0]
            self._poll.register(self._criu, select.POLLIN)

    # --- the agent

    def _told(self) -> None:
        assert self._control is not None
        data, fds = b"", list[int]()
        with contextlib.suppress(OSError):
            data, fds, _, _ = socket.recv_fds(self._control, _LARGEST, 1)
        if not data:  # it has died: whoever lets the process go on cannot tell us
            self._without_agent()
            return
        message = msgpack.unpackb(data)
        if "inbox" in message:
            self._arrivals = Arrivals(fds[0], message["inbox"])
            os.close(fds[0])
        elif "pages" in message:
            if self._arrivals is not None:
                self._arrivals.take(message["pages"], message["runs"], message["slot"])
        elif "end" in message:
            self._over = True
        else:
            self._filling = True

    def _without_agent(self) -> None:
        if self._control is not None:
            self._poll.unregister(self._control)
            self._control.close()
        self._control = self._arrivals = None
        self._unsaid.clear()
        self._filling = True

    def _another_agent(self, control: socket.socket) -> None:
        self._without_agent()
        self._control = control
        self._poll.register(control, select.POLLIN)
        self._filled = self._complete = False
        for space in self._spaces.values():
            self._say_space(space)
            space.want_again()
        self._say(restored=True)

    def _say(self, **what: Any) -> None:
        if self._control is not None:
            self._unsaid.append(what)
            self._flush()

    def _say_space(self, space: Space) -> None:
        # Not later: its descriptors might be others by then.
        if self._control is not None:
            message = msgpack.packb({"space": space.pid, "origin": space.origin})
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [message], list(space.fds))

    def _flush(self) -> None:
        """Say what nobody had room for."""
        with contextlib.suppress(OSError):  # no room now; or it has died, as will be seen
            while self._unsaid and self._control is not None:
                self._control.send(msgpack.packb(self._unsaid[0]), socket.MSG_DONTWAIT)
                self._unsaid.popleft()

    # --- CRIU

    def _from_criu(self, criu: socket.socket) -> None:
        """A PID, then its descriptor; of a zombie the negative PID alone; in the end a word."""
        data, ancillary, _, _ = criu.recvmsg(_NUMBER.size, socket.CMSG_SPACE(_NUMBER.size))
        if ancillary:
            fds = array.array("i")
            fds.frombytes(ancillary[0][2][: _NUMBER.size])
            self._begin(self._coming, fds[0])
        elif len(data) < _NUMBER.size or _WORD.unpack(data)[0] == _RESTORED:
            if data:
                self._say(restored=True)
            self._poll.unregister(criu)
            criu.close()
            self._criu = None
            self._restored = True
        else:
            self._coming = _NUMBER.unpack(data)[0]

    def _begin(self, pid: int, fd: int) -> None:
        store = os.open(file_name(pid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        listed = os.open(missing.file_name(pid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lazy = self._lazy(pid, Missing(listed))
        keep_only(store, lazy)
        Missing(listed).keep_only(lazy)
        some = os.fstat(store).st_blocks > 0
        self._add(Space(pid, pid, fd, store, listed, here=lazy if some else ()))

    @staticmethod
    def _lazy(pid: int, listed: Missing) -> list[Range]:
        """What CRIU leaves to us: as its image has it, and of what was told us (of which it was
        told nothing, see `agent.criu.hiding`) what it has not restored itself."""
        left, restored = page_ranges(Path(f"pagemap-{pid}.img").read_bytes())
        mapped = lazy_mappings(Path(f"mm-{pid}.img").read_bytes())
        lazy = Ranges(left)
        for start, end in split(split(listed.there(), mapped)[1], restored)[0]:
            lazy.add(start, end)
        return list(lazy)

    def _add(self, space: Space, tell: bool = True) -> None:
        self._spaces[space.fd] = space
        self._poll.register(space.fd, select.POLLIN)
        if tell:
            self._say_space(space)
        with contextlib.suppress(OSError):  # of a child only its descriptor tells
            end = os.pidfd_open(space.pid)
            self._ends[end] = space
            self._poll.register(end, select.POLLIN)

    # --- the spaces

    def _hear(self, space: Space) -> None:
        for child in space.hear(self._buffer):
            self._add(child)

    def _serve(self) -> None:
        """What is touched, what has arrived, and then a piece of what is left."""
        if self._arrivals is not None:
            free, gone = self._arrivals.place(list(self._spaces.values()))
            for space in gone:
                self._gone(space)
            for slot in free:
                self._say(placed=slot)
        for space in list(self._spaces.values()):
            try:
                space.serve(self._buffer)
                for start, end in space.wants():
                    self._say(want=space.origin, runs=[[start, (end - start) // PAGE]])
                if self._filling:
                    space.fill(self._buffer)
            except Busy:
                continue  # its events come first
            except Gone:
                self._gone(space)

    @property
    def _awaited(self) -> int:
        """Bytes that are missing."""
        return sum(one.awaited for one in self._spaces.values())

    def _tell(self) -> None:
        now, awaited = time.monotonic(), self._awaited
        left = awaited + sum(one.left for one in self._spaces.values())
        if now - self._reported > _REPORT_EVERY:
            self._reported = now
            if not self._unsaid:
                self._say(left=left)
        if not awaited and self._restored and not self._complete:
            self._complete = True
            self._say(complete=True)
        if not left and self._restored:
            faults = self._faults + sum(one.faults for one in self._spaces.values())
            self._filled = True
            self._say(filled=True, faults=faults)

    def _gone(self, space: Space) -> None:
        """It has ended."""
        if self._spaces.pop(space.fd, None) is None:
            return
        self._faults += space.faults
        self._poll.unregister(space.fd)
        space.close()
        for end in [fd for fd, one in self._ends.items() if one is space]:
            self._poll.unregister(end)
            os.close(end)
            del self._ends[end]


def _space(pid: int, origin: int, *fds: int) -> Space:
    userfaultfd, store, listed = fds
    return Space(pid, origin, userfaultfd, store, listed)


def main() -> None:
    directory, control, *spaces = sys.argv[1:]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when its work is done, or nobody needs it
    os.chdir(directory)
    pager = Pager(socket.socket(fileno=int(control)))
    if spaces:
        pager.go_on([_space(*map(int, one.split(":"))) for one in spaces])
    else:
        pager.await_criu()
    pager.run()


if __name__ == "__main__":
    main()
