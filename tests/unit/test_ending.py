"""How a process has ended, told of one that waits to be waited for, and of one that has been."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess

import pytest

from agent.kernel import ending
from agent.kernel.ending import UNKNOWN, how_ended

_CASES = [
    ("kill -KILL $$", "was killed by SIGKILL"),
    ("kill -SEGV $$", "was killed by SIGSEGV"),
    ("kill -40 $$", "was killed by signal 40"),
    ("exit 3", "ended with exit status 3"),
]


def ended(script: str) -> tuple[subprocess.Popen[bytes], int]:
    """A child that has ended and was not waited for, and its pidfd."""
    child = subprocess.Popen(["sh", "-c", f"read _; ulimit -c 0; {script}"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    assert child.stdin is not None
    child.stdin.close()
    assert select.select([pidfd], [], [], 10)[0]
    return child, pidfd


@pytest.mark.parametrize(("script", "words"), _CASES)
def test_a_zombie(script: str, words: str) -> None:
    child, pidfd = ended(script)
    assert how_ended(child.pid, pidfd) == words
    child.wait()
    os.close(pidfd)


@pytest.mark.parametrize(("script", "words"), _CASES)
def test_one_that_was_waited_for(script: str, words: str) -> None:
    """Only a kernel from 6.15 on tells, and no other answer is taken for one."""
    child, pidfd = ended(script)
    child.wait()
    assert how_ended(child.pid, pidfd) == (words if _tells() else UNKNOWN)
    os.close(pidfd)


def _tells() -> bool:
    """By its version, so that a mistake of ours is not taken for a kernel that does not tell."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


def test_one_that_lives() -> None:
    pidfd = os.pidfd_open(os.getpid())
    assert how_ended(os.getpid(), pidfd) == UNKNOWN
    os.close(pidfd)


def test_the_structure_is_the_kernels() -> None:
    assert ending._PIDFD_INFO.size == 64  # PIDFD_INFO_SIZE_VER0
    assert ending._PIDFD_GET_INFO == 0xC040FF0B
    assert struct.calcsize("=QQ11I") == 60  # the offset of exit_code
    assert signal.SIGKILL == 9
