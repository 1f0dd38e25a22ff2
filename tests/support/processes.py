"""Real processes for the probes to look at: Python code that then sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from agent import probe
from agent.probe.facts import ProcessFacts, validate
from orchestrator.refusals import TABLE, refusal

Start = Callable[..., int]

# It says that it is ready by closing its standard output: then no pipe leads out of it.
_PRELUDE = """
import os, socket, sys, time, mmap, struct, ctypes, select, threading, subprocess, signal
READY = os.dup(1)
null = os.open("/dev/null", os.O_RDWR); os.dup2(null, 1); os.close(null)
"""
_EPILOGUE = """
os.write(READY, b"ready"); os.close(READY)
time.sleep(600)
"""


@contextlib.contextmanager
def processes() -> Iterator[Start]:
    """A function that starts a process with some code, waits until it sleeps, gives its PID."""
    running: list[subprocess.Popen[bytes]] = []

    def start(code: str, **options: Any) -> int:
        done = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code) + _EPILOGUE],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
                "cwd": "/",
                "start_new_session": True,
                **options,
            },
        )
        running.append(done)
        assert done.stdout is not None
        assert done.stdout.read() == b"ready"
        return done.pid

    try:
        yield start
    finally:
        for one in running:
            with contextlib.suppress(ProcessLookupError):  # its children are in its session
                os.killpg(one.pid, signal.SIGKILL)
            one.kill()
        for one in running:
            one.communicate()


def look(pid: int) -> ProcessFacts:
    """The facts as they arrive at the other side."""
    sent = msgpack.unpackb(msgpack.packb(asyncio.run(probe.process(pid=pid))))
    facts = validate(sent, ProcessFacts, "facts")
    for one in facts["obstacles"]:
        assert one["code"] in TABLE
        refusal(one["code"], **one["fields"])  # has all the words need
    return facts


def obstacles(pid: int) -> list[tuple[str, str]]:
    """(code, all fields as one text)"""
    return [
        (one["code"], " ".join(str(value) for value in one["fields"].values()))
        for one in look(pid)["obstacles"]
    ]
