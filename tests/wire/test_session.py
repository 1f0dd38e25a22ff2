"""The agent's process, on plain pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agent import PROTOCOL_VERSION
from agent.wire.frames import FrameDecoder, encode

ROOT = Path(__file__).resolve().parents[2]


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


def read_message(process: subprocess.Popen[bytes]) -> dict[str, object]:
    assert process.stdout is not None
    decoder = FrameDecoder()
    while True:
        data = process.stdout.read(1 << 16)
        assert data, "the agent ended"
        for message in decoder.feed(data):
            return dict(message)


def test_hello_and_an_end_by_closed_stdin() -> None:
    with start() as process:
        assert read_message(process)["hello"] == PROTOCOL_VERSION
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def test_an_orchestrator_that_vanished_does_not_crash_it() -> None:
    """Nobody reads stdout or stderr any more; an agent that crashes here would undo nothing."""
    with start() as process:
        read_message(process)
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stderr.close()
        process.stdin.write(encode({"id": 1, "call": "nothing", "args": {}}))
        assert process.wait(timeout=20) == 0
        process.stdin.close()
