"""The event that keeps breakpoints cheap can be opened here, and goes again."""

from __future__ import annotations

import os

from agent.kernel.perf import Breakpoints


def test_held_and_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    breakpoints = Breakpoints()
    assert breakpoints.held
    breakpoints.close()
    breakpoints.close()
    assert not breakpoints.held
    assert len(os.listdir("/proc/self/fd")) == before
