"""A real agent process that is spoken to by somebody hostile: named errors, and an end by itself.

As root it runs in namespaces of its own, so that not even what is taken for valid touches the host.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.errors import AgentError
from agent.kernel import proc
from agent.wire.frames import MAX_FRAME, FrameDecoder, Message
from tests.support import hostile
from tests.support.hostile import CALLS, HOST_ID, ID, KEY, PLAN, nested, packed

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0  # seconds; each of these takes one at most
MEMORY = 200 << 20  # bytes of an agent, whatever it is sent; it begins with 40 MiB
PLACES = ("/var/lib", "/run")

_ALONE = "".join(f"mount -t tmpfs none {place} && " for place in PLACES)
COMMAND = [sys.executable, "-m", "agent"]
if os.geteuid() == 0:
    COMMAND = ["unshare", "--mount", "--net", "sh", "-c", f'{_ALONE} exec "$@"', "sh", *COMMAND]


def peak_at_the_end(process: subprocess.Popen[bytes]) -> int:
    """The most memory it has had, in bytes, once it has ended.

    Not `ru_maxrss`: that counts what forked it, too, which is the process of all tests.
    """
    peak = 0
    while True:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        sizes = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
        if not sizes:
            process.wait(PATIENCE)
            return peak
        peak = max(peak, *sizes)
        time.sleep(0.001)


class Agent:
    """A process, what it has answered, and what it has left."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            COMMAND,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.messages: list[Message] = []
        self.errors = b""
        self.peak = 0
        self._readers = [
            threading.Thread(target=one, daemon=True) for one in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        decoder = FrameDecoder()
        while data := self.process.stdout.read(1 << 16):
            self.messages += decoder.feed(data)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has had enough
            view = memoryview(data)
            while view:
                view = view[self.process.stdin.write(view) or 0 :]

    def end(self) -> None:
        """No more is said; asserts that it goes, with status 0 and nothing but named errors."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.peak = peak_at_the_end(self.process)
        for reader in self._readers:
            reader.join(PATIENCE)
        assert self.process.returncode == 0, self.errors
        assert self.peak < MEMORY, f"{self.peak >> 20} MiB"
        for line in self.errors.splitlines():
            assert line.startswith(b"streamferry: the other side broke the protocol: "), self.errors
        check_replies(self.messages)

    @property
    def left(self) -> list[str]:
        """Files at its places."""
        places = (Path(f"/proc/{self.process.pid}/root{place}") for place in PLACES)
        return hostile.left_in(*places)

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def check_replies(messages: list[Message]) -> None:
    """A hello, then results and errors that have a name of their own."""
    assert "hello" in messages[0]
    for one in messages[1:]:
        assert one.keys() in ({"id", "result"}, {"id", "error"}, {"event", "data"}), one
        if "error" in one:
            assert one["error"]["code"] != AgentError.code, one


@contextlib.contextmanager
def agent() -> Iterator[Agent]:
    one = Agent()
    watchdog = threading.Timer(PATIENCE, one.process.kill)  # then its status is not 0
    watchdog.start()
    try:
        yield one
    finally:
        watchdog.cancel()
        one.kill()


def call(name: str, **args: Any) -> bytes:
    return packed({"id": 1, "call": name, "args": args})


@settings(hostile.repeatable, max_examples=12)
@given(st.lists(hostile.messages, min_size=10, max_size=40))
def test_calls_that_are_wrong_or_out_of_turn(messages: list[Message]) -> None:
    with agent() as one:
        for message in messages:
            one.send(packed(message))
        one.end()


@settings(hostile.repeatable, max_examples=12)
@example(b"Welcome to src\n")
@given(hostile.broken_frames())
def test_what_is_no_frame(data: bytes) -> None:
    with agent() as one:
        one.send(data)
        one.end()
        assert len(one.messages) <= 2


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", MAX_FRAME + 1) + bytes(1 << 20),
        struct.pack("!I", 0xFFFFFFFF) * 1000,
        struct.pack("!I", MAX_FRAME) + b"\xdd\x00\x7f\xff\xfb" + b"\xdd\xff\xff\xff\xff" * 1000,
        struct.pack("!I", MAX_FRAME) + b"\x81\xa1a\xdc" + bytes(1 << 20),  # and then it ends
    ],
    ids=["over the limit", "over and over", "claims within", "cut off"],
)
def test_huge_lengths(data: bytes) -> None:
    with agent() as one:
        one.send(data)
        one.end()


def test_more_calls_at_once_than_anybody_needs() -> None:
    with agent() as one:
        one.send(call("journal.list") * 100_000)
        one.end()
        assert b"calls at once" in one.errors


def test_a_caller_who_does_not_listen() -> None:
    """Answers are not kept without end for one who does not take them."""
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    with process:
        assert process.stdin and process.stderr
        with contextlib.suppress(BrokenPipeError):
            for _ in range(3000):  # each is answered with the name: 60 MB, were all answered
                process.stdin.write(packed({"id": 1, "call": "n" * 500}) * 40)
        process.stdin.close()
        peak = peak_at_the_end(process)
        errors = process.stderr.read()
    watchdog.cancel()
    assert process.returncode == 0 and b"calls at once" in errors, errors
    assert peak < MEMORY


IDS = [*hostile.PATHS, f"{ID}\n", ID.upper(), None, 5, b"x", [ID], nested(400)]


def test_strange_ids_name_nothing() -> None:
    with agent() as one:
        for name in ("recovery.settle", "recovery.forget"):
            for value in IDS:
                one.send(call(name, **{**CALLS[name], "migration": value}))
        for role in ("", "..", "source/../x", None, ["source"], "orchestrator"):
            one.send(call("recovery.settle", **{**CALLS["recovery.settle"], "role": role}))
        for patience in ("1", None, -1, float("nan"), float("inf"), 1e300, []):
            one.send(call("recovery.settle", **{**CALLS["recovery.settle"], "patience": patience}))
        one.send(call("journal.list"))
        one.end()
        *errors, last = one.messages[1:]
        assert [message["error"]["code"] for message in errors] == ["protocol"] * len(errors)
        assert len(errors) == 2 * len(IDS) + 6 + 7
        assert last["result"] == {"journals": [], "damaged": []}


@pytest.mark.parametrize("images_dir", [*hostile.PATHS, "relative", "/a" * 400_000, 5, None, {}])
def test_a_directory_that_none_can_be(images_dir: Any) -> None:
    with agent() as one:
        one.send(call("probe.host", images_dir=images_dir))
        one.end()
        assert one.messages[1]["error"]["code"] == "protocol"


def test_a_prepare_that_is_refused_leaves_nothing() -> None:
    bad = [
        ("source.prepare", {"plan": {**PLAN.to_wire(), "id": f"../../{ID}"}}),
        ("source.prepare", {"plan": PLAN.to_wire()}),  # no such process
        (
            "destination.prepare",
            {"plan": PLAN.to_wire(), "client_key": "ssh-ed25519 AAAA", "source_id": HOST_ID},
        ),
        ("destination.prepare", {"plan": PLAN.to_wire(), "client_key": 5, "source_id": HOST_ID}),
        ("destination.prepare", {"plan": PLAN.to_wire(), "client_key": KEY, "source_id": "../x"}),
    ]
    with agent() as one:
        for name, args in bad:
            one.send(call(name, **args))
        answered = threading.Event()
        while len(one.messages) <= len(bad):
            assert not answered.wait(0.01) and one.process.poll() is None
        if os.geteuid() == 0:
            assert one.left == []
        assert listening(one.process.pid) == []
        one.end()
        assert all("error" in message for message in one.messages[1:])


def listening(pid: int) -> list[str]:
    """Lines of the sockets that listen in the process' network namespace and are its own."""
    own = {
        os.readlink(path)
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if os.readlink(path).startswith("socket:")
    }
    found = []
    for name in ("tcp", "tcp6"):
        for line in proc.lines(f"/proc/{pid}/net/{name}")[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.append(line)
    return found


def test_out_of_order_and_twice() -> None:
    """Whether or not a destination can be prepared here, what follows is answered by name."""
    with agent() as one:
        for name in ("source.run", "source.cancel", "source.resolve", "destination.run"):
            one.send(call(name, **CALLS[name]))
        for _ in range(2):
            one.send(
                call("destination.prepare", plan=PLAN.to_wire(), client_key=KEY, source_id=HOST_ID)
            )
        one.send(call("destination.run") * 2)
        one.end()
        codes = [one["error"]["code"] for one in one.messages[1:] if "error" in one]
        assert codes.count("not-prepared") >= 4
