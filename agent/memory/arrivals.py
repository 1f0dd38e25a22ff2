"""What has come from the source and is not in its place yet: in slots of a file of the agent."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Iterable

from agent.kernel.userfault import Busy, Gone
from agent.memory.layout import PAGE
from agent.memory.space import Space

SLOT = 1 << 20  # bytes of pages that come at once
Runs = list[list[int]]  # [address, pages, has data]


def offset(runs: Runs) -> int:
    """Where in a slot the data of these runs begins: it ends where the slot does."""
    return SLOT - sum(pages for _, pages, has_data in runs if has_data) * PAGE


class Arrivals:
    """The pager's side."""

    def __init__(self, fd: int, slots: int) -> None:
        self._map = mmap.mmap(fd, slots * SLOT)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._waiting: deque[tuple[int, Runs, int]] = deque()

    def take(self, pid: int, runs: Runs, slot: int) -> None:
        self._waiting.append((pid, runs, slot))

    def place(self, spaces: Iterable[Space]) -> tuple[list[int], list[Space]]:
        """The slots that are free again, and the spaces that were found to be gone."""
        spaces = list(spaces)
        free: list[int] = []
        gone: list[Space] = []
        while self._waiting:
            pid, runs, slot = self._waiting[0]
            concerned = [one for one in spaces if one.origin == pid and one not in gone]
            try:
                while runs:
                    address, pages, has_data = runs[0]
                    at = self._address + slot * SLOT + offset(runs) if has_data else None
                    for space in concerned:
                        try:
                            space.arrive(address, pages * PAGE, at)
                        except Gone:
                            gone.append(space)
                    del runs[0]
            except Busy:
                break  # its events come first
            self._waiting.popleft()
            free.append(slot)
        return free, gone
