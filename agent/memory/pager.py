"""A process at the destination that gives the restored processes their memory, and then ends.

CRIU's restore connects to it in place of CRIU's own lazy-pages daemon and hands it a userfaultfd
for each process. It serves what is touched and, once it is told to, fills in the rest. It needs
nobody: an agent that dies leaves it to its work. And the agent has all of its descriptors, so that
another can go on when this one is killed, and until then nobody sees zeros where memory should be.

Arguments: the images' directory, and the descriptor of a socket to the agent, on which both say
msgpack maps, one a message (SOCK_SEQPACKET): it {"ready": True} when CRIU may connect, {"space":
PID} with the descriptors of userfaultfd and store (of a process that was forked, 0 for its PID),
{"restored": True} when there is one of each process, {"left": bytes} now and then, {"filled": True,
"faults": int}; the agent {"fill": True}, and {"end": True} when it has closed its descriptors: the
last to be closed makes zeros of what is missing. One that goes on for another has further
arguments, PID:FD:FD each.
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
from pathlib import Path
from typing import Any

import msgpack

from agent.criu.images import lazy_ranges
from agent.kernel.userfault import Busy, Gone
from agent.memory.space import Buffer, Space, keep_only
from agent.memory.store import file_name

SOCKET = "lazy-pages.socket"  # as CRIU looks for it, in the images' directory
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
        self._criu: socket.socket | None = None
        self._coming = 0  # the PID whose descriptor comes next
        self._spaces: dict[int, Space] = {}
        self._ends: dict[int, Space] = {}  # by pidfd
        self._buffer = Buffer()
        self._restored = False
        self._filling = False
        self._filled = False  # and said so
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
        self._say(ready=True)

    def go_on(self, spaces: list[Space]) -> None:
        """Take over from a pager that was killed after the restore."""
        for space in spaces:
            self._add(space, tell=False)
        self._restored = self._filling = True

    def run(self) -> None:
        """Until every space is filled and nobody else has it, or nobody ever comes."""
        while not self._over:
            for fd, _ in self._poll.poll(self._patience()):
                self._ready(fd)
            self._serve()
            if self._filling and not self._filled:
                self._tell()
            if self._control is None and self._criu is None:
                self._over = self._filled or not self._spaces

    def _patience(self) -> int | None:
        """Milliseconds to wait for something to happen."""
        spaces = self._spaces.values()
        if self._filling and any(one.left for one in spaces):
            return 0
        unsaid = self._filling and self._restored and not self._filled
        return _SHORTLY if unsaid or any(one.waiting for one in spaces) else None

    def _ready(self, fd: int) -> None:
        if fd in self._spaces:
            self._hear(self._spaces[fd])
        elif fd in self._ends:
            self._gone(self._ends[fd])
        elif self._control is not None and fd == self._control.fileno():
            self._told()
        elif self._criu is not None and fd == self._criu.fileno():
            self._from_criu(self._criu)
        elif self._listener is not None and fd == self._listener.fileno():
            self._criu = self._listener.accept()[0]
            self._poll.register(self._criu, select.POLLIN)

    # --- the agent

    def _told(self) -> None:
        assert self._control is not None
        data = b""
        with contextlib.suppress(OSError):
            data = self._control.recv(_LARGEST)
        self._over = bool(data) and "end" in msgpack.unpackb(data)
        if not data:  # it has died: whoever lets the process go on cannot tell us
            self._poll.unregister(self._control)
            self._control.close()
            self._control = None
        self._filling = True

    def _say(self, **what: Any) -> bool:
        """Whether nobody has to be told again."""
        try:
            if self._control is not None:
                self._control.send(msgpack.packb(what), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it has died, as will be seen
            pass
        return True

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
        keep_only(store, lazy_ranges(Path(f"pagemap-{pid}.img").read_bytes()))
        self._add(Space(pid, fd, store))

    def _add(self, space: Space, tell: bool = True) -> None:
        self._spaces[space.fd] = space
        self._poll.register(space.fd, select.POLLIN)
        if self._control is not None and tell:
            message = msgpack.packb({"space": space.pid})
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [message], [space.fd, space.store])
        with contextlib.suppress(OSError):  # of a child only its descriptor tells
            end = os.pidfd_open(space.pid)
            self._ends[end] = space
            self._poll.register(end, select.POLLIN)

    # --- the spaces

    def _hear(self, space: Space) -> None:
        for child in space.hear(self._buffer):
            self._add(child)

    def _serve(self) -> None:
        """What is touched, and then a piece of what is left."""
        for space in list(self._spaces.values()):
            try:
                space.serve(self._buffer)
                if self._filling:
                    space.fill(self._buffer)
            except Busy:
                continue  # its events come first
            except Gone:
                self._gone(space)

    def _tell(self) -> None:
        now, left = time.monotonic(), sum(one.left for one in self._spaces.values())
        if now - self._reported > _REPORT_EVERY:
            self._reported = now
            self._say(left=left)
        if not left and self._restored:
            faults = self._faults + sum(one.faults for one in self._spaces.values())
            self._filled = self._say(filled=True, faults=faults)

    def _gone(self, space: Space) -> None:
        """It has ended."""
        if self._spaces.pop(space.fd, None) is None:
            return
        self._faults += space.faults
        self._poll.unregister(space.fd)
        os.close(space.fd)
        os.close(space.store)
        for end in [fd for fd, one in self._ends.items() if one is space]:
            self._poll.unregister(end)
            os.close(end)
            del self._ends[end]


def main() -> None:
    directory, control, *spaces = sys.argv[1:]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when its work is done, or nobody needs it
    os.chdir(directory)
    pager = Pager(socket.socket(fileno=int(control)))
    if spaces:
        pager.go_on([Space(*map(int, one.split(":"))) for one in spaces])
    else:
        pager.await_criu()
    pager.run()


if __name__ == "__main__":
    main()
