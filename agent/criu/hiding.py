"""Large mappings whose pages CRIU need not see: it is told that there are none.

Where memory does not go with CRIU's images, it still goes through every page that there is: it has
them all put into pipes, which nobody reads (100 ms for 800 MB). All that its restore needs of them
is the mapping. So its PAGEMAP_SCAN waits for an answer of ours; what is there we tell the
destination ourselves (`agent.memory.pagemaps`).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from agent.criu.images import lazy_mappings
from agent.errors import AgentError
from agent.kernel import pagemap, proc, seccomp
from agent.kernel.syscalls import read_memory
from agent.memory.layout import PAGE, anonymous
from agent.memory.ranges import Range

LEAST = 16 << 20  # bytes of a mapping; threads' stacks are smaller
_PAGEMAP = re.compile(r"/(\d+)/pagemap$")
_MOST_THREADS = 1000
_GOES_THROUGH, _ASKS = 0.1 / (800 << 20), 0.0003  # seconds a byte, and a question
_SWITCH = 0.0001  # seconds that the agent's other thread may keep Python to itself
_WALK_END = 32  # offset in struct pm_scan_arg
_PATIENCE = 10.0  # seconds for us to know what is hidden


class NotLazy(AgentError):
    code = "not-lazy"
    template = "CRIU would not have restored all memory of process {pid} as it was told to"
    hint_template = "Use --memory stop, and please report it."


def hideable(pid: int) -> dict[Range, list[int]]:
    """Mappings of a process that stands still, each with the pages of it that its threads' stacks
    are at: those CRIU restores itself. Raises `OSError`."""
    if proc.status(pid).get("VmLck", "0 kB").split()[0] != "0":
        return {}
    large = [one for one in anonymous(pid) if one[1] - one[0] >= LEAST]
    if not large:
        return {}
    tids = proc.threads(pid)
    if len(tids) > _MOST_THREADS:
        return {}
    pointers = sorted({_stack_pointer(pid, tid) // PAGE * PAGE for tid in tids})
    return {
        (start, end): pointers[bisect_left(pointers, start) : bisect_left(pointers, end)]
        for start, end in large
    }


def worth(pids: Iterable[int]) -> bool:
    """Whether CRIU takes longer to go through the large mappings of these processes than to ask us
    of each mapping that there is. Raises `OSError` where one has ended."""
    large = asked = 0
    for pid in pids:
        for one in proc.maps(pid):
            asked += 1
            if not one.inode and one.end - one.start >= LEAST:
                large += one.end - one.start
    return large * _GOES_THROUGH > asked * _ASKS


def hideable_of(pids: Iterable[int]) -> dict[int, dict[Range, list[int]]]:
    """`hideable` of each; nothing of one that has ended, or that cannot be looked at."""
    hidden = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            hidden[pid] = hideable(pid)
    return hidden


def _stack_pointer(pid: int, tid: int) -> int:
    """Of a thread that stands still. Raises `OSError`."""
    words = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
    if len(words) < 3:
        raise OSError(f"thread {tid} runs")
    return int(words[-2], 16)


class Hiding:
    """Answers one CRIU, in a thread of its own: the agent is busy with the memory meanwhile."""

    def __init__(self, listener: int) -> None:
        """`listener`: of `seccomp.Filter`; closed in the end."""
        self._listener = listener
        self._hidden: dict[int, dict[Range, list[int]]] = {}
        self._known = threading.Event()
        self._answered: list[tuple[int, int, int]] = []  # PID, start and end
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hide(self, hidden: Mapping[int, dict[Range, list[int]]]) -> None:
        """As `hideable` has found them, by PID. CRIU waits for that."""
        self._hidden.update(hidden)
        self._known.set()

    def check(self, images: Path) -> None:
        """Whether CRIU took for lazy what it was told has no pages. Raises `NotLazy`, `OSError`,
        `ImageError`."""
        for pid in {one[0] for one in self._answered}:
            lazy = set(lazy_mappings((images / f"mm-{pid}.img").read_bytes()))
            if not lazy.issuperset(one[1:] for one in self._answered if one[0] == pid):
                raise NotLazy(pid=pid)

    def close(self) -> None:
        """Idempotent. CRIU has ended, or has no more to ask."""
        if self._stopped >= 0:
            os.close(self._stopped)
            self._stopped = -1
            self._known.set()
            self._thread.join()
            sys.setswitchinterval(self._interval)
            os.close(self._stop)
            os.close(self._listener)

    # --- the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            found = dict(poll.poll())
            if self._stop in found or not found.get(self._listener, 0) & select.POLLIN:
                return
            with contextlib.suppress(OSError):  # it was killed meanwhile
                notice = seccomp.receive(self._listener)
                value = None
                with contextlib.suppress(Exception):  # CRIU would wait for ever
                    value = self._answer(notice)
                seccomp.answer(self._listener, notice, value)

    def _answer(self, notice: seccomp.Notice) -> int | None:
        """What to say to a scan; None: the truth. Raises `OSError`."""
        fd, _, address, *_ = notice.arguments
        argument = read_memory(notice.pid, [(address, address + pagemap.ARGUMENT.size)])
        _, _, start, end, _, regions, _, _, _, _, any_of, _ = pagemap.ARGUMENT.unpack(argument)
        if any_of != pagemap.THERE or end - start < LEAST:
            return None
        match = _PAGEMAP.search(os.readlink(f"/proc/{notice.pid}/fd/{fd}"))
        self._known.wait(_PATIENCE)
        pid = int(match[1]) if match is not None else 0
        kept = self._hidden.get(pid, {}).get((start, end))
        if kept is None:
            return None
        with _memory(notice.pid) as memory:
            if not seccomp.waits(self._listener, notice):  # its PID is another's by now
                return None
            found = [pagemap.REGION.pack(one, one + PAGE, pagemap.THERE) for one in kept]
            os.pwrite(memory, b"".join(found), regions)
            os.pwrite(memory, end.to_bytes(8, "little"), address + _WALK_END)
        self._answered.append((pid, start, end))
        return len(kept)


@contextlib.contextmanager
def _memory(pid: int) -> Iterator[int]:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
