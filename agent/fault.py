"""Named fault points, switched on per run (`--fault POINT@ROLE=ACTION`), for tests and chaos.

One table has them all; `migrate chaos points` prints it. They cost one look-up in an empty
dictionary when off.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.errors import AgentError, FaultInjected

SOURCE, DESTINATION, ORCHESTRATOR, LINK = ROLES = ("source", "destination", "orchestrator", "link")

KILL, ERROR, HANG, CUT, CORRUPT, FULL = "kill", "error", "hang", "cut", "corrupt", "full"
DELAY = "delay="
ACTIONS = {
    KILL: "SIGKILL to the process",
    ERROR: "an error of ours",
    HANG: "it waits for ever; of the link: nothing gets through any more, in either direction",
    CUT: "the link breaks; of the orchestrator: its connections to both hosts",
    CORRUPT: "a bit is flipped in what is sent next",
    FULL: "from now on no room is left for the journal, nor for images",
    "truncate": "the next record ends too early",
    "oversize": "the next record says that it is longer than any may be",
    "newer": "the next record is of a later version",
    f"{DELAY}S": "S seconds pass",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A step at which a fault can be injected."""

    name: str
    role: str
    when: str
    actions: tuple[str, ...]

    def takes(self, action: str) -> bool:
        if action.startswith(DELAY):
            return f"{DELAY}S" in self.actions and seconds_of(action) >= 0
        return action in self.actions


SWEPT = (KILL, ERROR, HANG, CUT, CORRUPT, FULL)
_AGENT = (*SWEPT, f"{DELAY}S")
_LINK = (HANG, CUT, CORRUPT, f"{DELAY}S")  # it has no process of its own, and no disk
_SPOILT = ("truncate", "oversize", "newer")


def _points(
    role: str,
    rows: Iterable[tuple[str, str]],
    actions: tuple[str, ...] = _AGENT,
    more: dict[str, tuple[str, ...]] | None = None,
) -> list[Point]:
    special = more or {}
    return [Point(name, role, when, (*actions, *special.get(name, ()))) for name, when in rows]


POINTS = [
    *_points(SOURCE, [
        ("prepare", "its journal is begun, nothing else"),
        ("sync", "the link is there, no file is brought"),
        ("pre_copy", "the link is there, no memory is sent"),
        ("lock", "the link is there, nothing is touched"),
        ("locked", "both hosts are locked, the process runs"),
        ("freeze", "the process is frozen"),
        ("sync_last", "files that have changed are looked for, with the process frozen"),
        ("dump_streams", "no stream is dumped yet"),
        ("dump_process", "CRIU is about to dump"),
        ("ship", "the images are on their way"),
        ("prepared", "the destination is ready, nothing is decided"),
        ("decided", "the hand-over is in the journal, and nobody knows"),
        ("handover", "the hand-over is sent"),
        ("serve", "the process runs at the destination, memory of it is still here"),
        ("committed", "the destination has it; the copy here is not ended"),
        ("end", "the copy here is ended, the lock is not lifted"),
    ], more={"ship": _SPOILT}),
    *_points(DESTINATION, [
        ("prepare", "its journal is begun, nothing else"),
        ("sync", "files come"),
        ("lock", "the source asks for the lock"),
        ("pages", "memory comes ahead"),
        ("restore_streams", "streams have come"),
        ("ship", "images come"),
        ("restore_process", "CRIU is about to restore"),
        ("restored", "the process is here, stopped"),
        ("commit", "the hand-over has come"),
        ("take_over", "the addresses are not here yet"),
        ("decide", "the addresses are here, nothing is decided"),
        ("unlock", "the commit is in the journal, and nobody knows"),
        ("release", "the lock is lifted, the streams are not awake"),
        ("thaw", "the streams are awake, the process is not"),
        ("replay", "the process runs"),
        ("post_copy", "the process runs, memory of it is still at the source"),
        ("fill", "not all of its memory is in its place"),
        ("end", "the peers are awake"),
    ]),
    *_points(LINK, [
        (name, f"a record {name!r} is sent")
        for name in ("lock", "locked", "connections", "streams", "file", "end", "prepared",
                     "handover", "running", "missing", "committed", "awake")
    ], _LINK),
    *_points(ORCHESTRATOR, [
        ("prepare", "the check is over"),
        ("run", "both agents are prepared"),
        ("lock", "the source locks"),
        ("freeze", "the source freezes the process"),
        ("ship", "the images are shipped"),
        ("commit", "the destination waits for the hand-over"),
        ("settle", "the source has reported"),
    ]),
]  # fmt: skip

_BY_NAME = {(point.name, point.role): point for point in POINTS}


class BadFault(AgentError):
    code = "bad-fault"
    template = "there is no fault {fault!r}"
    hint_template = "Write POINT@ROLE=ACTION; `migrate chaos points` has them all."
    exit_status = 2


def seconds_of(action: str) -> float:
    """Of "delay=S"; -1 where it is none."""
    try:
        return float(action.removeprefix(DELAY)) if action.startswith(DELAY) else -1.0
    except ValueError:
        return -1.0


def parse(fault: str) -> tuple[Point, str]:
    """Point and action of POINT@ROLE=ACTION. Raises `BadFault`."""
    place, _, action = fault.partition("=")
    name, _, role = place.partition("@")
    point = _BY_NAME.get((name, role))
    if point is None or not point.takes(action):
        raise BadFault(fault=fault)
    return point, action


class Faults:
    """The faults of one run, for one role."""

    def __init__(self, role: str, faults: Iterable[str]) -> None:
        """Raises `BadFault`."""
        found = [parse(fault) for fault in faults]
        self._actions = {point.name: action for point, action in found if point.role == role}
        # Set by whoever owns what they are about.
        self.cut: Callable[[], object] = _nothing
        self.spoil: Callable[[str], object] = _nothing
        self.fill: Callable[[], object] = _nothing

    def action(self, point: str) -> str | None:
        """The action asked for at `point`."""
        return self._actions.get(point)

    @property
    def actions(self) -> dict[str, str]:
        """By point."""
        return dict(self._actions)

    async def at(self, point: str) -> None:
        """Carry out what is asked for at `point`."""
        action = self._actions.get(point)
        if action is None:
            return
        if action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == ERROR:
            raise FaultInjected(point=point)
        elif action == HANG:
            await asyncio.Event().wait()
        elif action == CUT:
            self.cut()
            await asyncio.sleep(0)
        elif action == FULL:
            self.fill()
        elif action in (CORRUPT, *_SPOILT):
            self.spoil(action)
        elif action.startswith(DELAY):
            await asyncio.sleep(seconds_of(action))


def _nothing(*_: object) -> None:
    """Nothing is there yet that could be cut, spoilt or filled."""


def damage(action: str, header: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A record as `action` spoils it on the wire; `agent.image.records` has the layout."""
    if action == CORRUPT:
        return header, body[:-1] + bytes([body[-1] ^ 1])
    if action == "truncate":
        return header, body[: len(body) // 2]
    if action == "oversize":
        return header[:8] + b"\xff\xff\xff\xff" + header[12:], body
    if action == "newer":
        return header[:2] + bytes([header[2] + 1]) + header[3:], body
    return header, body
