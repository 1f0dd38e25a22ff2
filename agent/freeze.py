"""Stop, continue or kill a process tree, through pidfds, so that no reused PID is ever hit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from pathlib import Path

from agent.errors import AgentError
from agent.kernel import proc
from agent.kernel.ending import how_ended

_POLL = 0.0003  # seconds between looks at the states
_FREEZE_TIMEOUT = 2.0
_KILL_TIMEOUT = 5.0


class FreezeError(AgentError):
    code = "freeze"
    template = "process {pid} cannot be stopped: {detail}"
    hint_template = "See what it waits for in /proc/{pid}/wchan and /proc/{pid}/stack."


def children(pid: int) -> list[int]:
    """The children of every thread of `pid`; empty when it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def thread_states(pid: int) -> dict[int, str]:
    """State letter of each thread (proc_pid_stat(5)); empty when the process has gone."""
    states: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/task/{task}/stat").read_text()
                states[int(task)] = stat[stat.rindex(")") + 2]
    return states


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()  # select(2) takes no descriptor from 1024 on
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Tree:
    """A root process and its descendants, held by pidfds."""

    def __init__(self, root: int) -> None:
        """Raises `FreezeError` when there is no such process."""
        self.root = root
        self.pidfds: dict[int, int] = {}
        self.stopped_before: set[int] = set()
        self._zombies: set[int] = set()
        if not self.adopt(root):
            raise FreezeError(pid=root, detail="it has ended")

    def adopt(self, pid: int) -> bool:
        """Take a process in; whether it is there."""
        try:
            self.pidfds[pid] = fd = os.pidfd_open(pid)
        except OSError:
            return False
        if _has_ended(fd):
            self._zombies.add(pid)
        return True

    @property
    def pids(self) -> list[int]:
        """The members found so far, root first."""
        return list(self.pidfds)

    @property
    def births(self) -> list[list[int]]:
        """[PID, when it was started] of each member, for whoever finds it later."""
        return [[pid, proc.born(pid)] for pid in self.pids]

    @property
    def ended(self) -> int | None:
        """A member that has ended since it was taken in, if any has."""
        there = ((pid, fd) for pid, fd in self.pidfds.items() if pid not in self._zombies)
        return next((pid for pid, fd in there if _has_ended(fd)), None)

    def how_ended(self, pid: int) -> str:
        """As `agent.kernel.ending.how_ended`, of a member."""
        return how_ended(pid, self.pidfds[pid])

    def refresh(self) -> None:
        """Find the members of now."""
        queue = [self.root]
        while queue:
            for child in children(queue.pop()):
                if child in self.pidfds or self.adopt(child):
                    queue.append(child)

    async def freeze(self) -> None:
        """Stop every thread of the tree, also of children born meanwhile.

        Raises `FreezeError` after a time; what was stopped is for `thaw` to continue.
        """
        deadline = time.monotonic() + _FREEZE_TIMEOUT
        known: set[int] = set()
        while True:
            self.refresh()
            fresh = [pid for pid in self.pidfds if pid not in known]
            for pid in fresh:
                known.add(pid)
                if "T" in thread_states(pid).values():
                    self.stopped_before.add(pid)
                self._signal(pid, signal.SIGSTOP)
            running = [pid for pid in known if not self._is_stopped(pid)]
            if not running and not fresh:
                return
            if running and time.monotonic() > deadline:
                states = ", ".join(sorted(set(thread_states(running[0]).values())))
                raise FreezeError(pid=running[0], detail=f"its threads are in state {states}")
            if running:
                await asyncio.sleep(_POLL)

    def _is_stopped(self, pid: int) -> bool:
        states = thread_states(pid)
        if not states or all(state in "ZX" for state in states.values()):
            return True
        return all(state in "TtZX" for state in states.values())

    def thaw(self) -> None:
        """Continue what `freeze` stopped, children first."""
        for pid in reversed(self.pids):
            if pid not in self.stopped_before:
                self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfds[pid], number)

    async def kill(self) -> None:
        """Kill the tree and wait until every member has ended."""
        for pid in reversed(self.pids):  # cut short, the root still leads to the rest
            self._signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_TIMEOUT
        for pid, pidfd in self.pidfds.items():
            while not _has_ended(pidfd):
                if time.monotonic() > deadline:
                    raise FreezeError(pid=pid, detail="it does not end after SIGKILL")
                await asyncio.sleep(_POLL)

    def close(self) -> None:
        for pidfd in self.pidfds.values():
            os.close(pidfd)
        self.pidfds.clear()
