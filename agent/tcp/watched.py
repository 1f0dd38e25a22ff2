"""What the epoll sets of a frozen tree watch, and whether it is as it seems by the numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from agent.kernel import epoll
from agent.tcp.steal import Descriptors

_FEW = 64  # the kernel walks the whole set for each that is asked about


@dataclass(slots=True)
class Watched:
    """The sets of a tree, [[pid, fd, [[fd, events, data, inode]]]], and of them what is ours."""

    rows: list[list[Any]] = field(default_factory=list)
    sound: bool = True  # each watches, under a number, what has this number in its process


def look(descriptors: Descriptors, ours: Collection[int]) -> Watched:
    """Look at all sets; `ours` are inodes. A socket's inode is its own as long as it is there."""
    found = Watched()
    asked = 0
    for pid, fd in descriptors.epolls:
        try:
            watches = epoll.watches(pid, fd)
        except OSError:
            found.sound = False
            continue
        inodes = descriptors.inodes[pid]
        numbers = set()
        rows = []
        for watch in watches:
            if watch.fd in numbers:  # one of them is not what has the number now
                found.sound = False
            numbers.add(watch.fd)
            if inodes.get(watch.fd) == watch.inode:
                if watch.inode in ours:
                    rows.append(list(watch))
            elif watch.inode in ours or watch.fd in inodes or asked >= _FEW:
                found.sound = False
            else:
                asked += 1
                same = False
                with contextlib.suppress(OSError):
                    same = epoll.is_watched(pid, fd, watch.fd)
                found.sound = found.sound and same
        if rows:
            found.rows.append([pid, fd, rows])
    return found
