"""Named fault points, switched on per run (`--fault POINT@ROLE=ACTION`), for tests and chaos.

They cost one dictionary look-up in an empty dictionary when off.
"""

from __future__ import annotations

import asyncio
import os
import signal

from agent.errors import AgentError, FaultInjected

SOURCE_POINTS = (
    "lock",
    "freeze",
    "dump_streams",
    "dump_process",
    "ship",
    "prepared",
    "handover",
    "committed",
)
DESTINATION_POINTS = (
    "lock",
    "restore_streams",
    "ship",
    "restore_process",
    "commit",
    "take_over",
    "unlock",
    "replay",
)
ACTIONS = ("kill", "error", "hang", "corrupt", "truncate", "oversize", "newer", "full")


class BadFault(AgentError):
    code = "bad-fault"
    template = "there is no fault {fault!r}"
    hint_template = "Write POINT@ROLE=ACTION, ROLE source or destination."
    exit_status = 2


class Faults:
    """The faults of one run, for one role."""

    def __init__(self, role: str, faults: list[str]) -> None:
        points = SOURCE_POINTS if role == "source" else DESTINATION_POINTS
        self._actions: dict[str, str] = {}
        for fault in faults:
            place, _, action = fault.partition("=")
            point, _, where = place.partition("@")
            if where == role:
                if point not in points or (
                    action not in ACTIONS and not action.startswith("delay=")
                ):
                    raise BadFault(fault=fault)
                self._actions[point] = action

    def action(self, point: str) -> str | None:
        """The action asked for at `point`, for the caller to carry out (corrupt, full ...)."""
        return self._actions.get(point)

    async def at(self, point: str) -> None:
        """Carry out kill, error, hang and delay at `point`, where asked for."""
        action = self._actions.get(point)
        if action is None:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "error":
            raise FaultInjected(point=point)
        elif action == "hang":
            await asyncio.Event().wait()
        elif action.startswith("delay="):
            await asyncio.sleep(float(action.removeprefix("delay=")))


def damage(action: str, header: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A record as `action` spoils it on the wire; `agent.image.records` has the layout."""
    if action == "corrupt":
        return header, body[:-1] + bytes([body[-1] ^ 1])
    if action == "truncate":
        return header, body[: len(body) // 2]
    if action == "oversize":
        return header[:8] + b"\xff\xff\xff\xff" + header[12:], body
    if action == "newer":
        return header[:2] + bytes([header[2] + 1]) + header[3:], body
    return header, body
