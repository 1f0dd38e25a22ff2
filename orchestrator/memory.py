"""How the memory of a process goes, where `--memory auto` leaves that to us; and why. Pure.

What is known beforehand decides whether it goes ahead at all. How fast the process changes it, and
how fast the link takes it, the source sees in the rounds: where another as long as the last would
stand still for longer than --max-blackout, the rest follows (`Plan.may_follow`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.plan import POST_COPY, PRE_COPY, STOP
from agent.probe.facts import HostFacts

AUTO = "auto"
ROUNDS = {STOP: 0, PRE_COPY: 8, POST_COPY: 1}  # of memory that goes ahead
_WORTH_AHEAD = 64 << 20  # bytes; what is less is sent sooner at once

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """A mode of MEMORY_MODES, and a reason in words."""

    mode: str
    why: str
    may_follow: bool = False  # the source may go over to another, as it sees more


def choose(asked: str, memory: int, destination: str, host: HostFacts) -> Choice:
    """`asked`: AUTO or a mode; `memory`: bytes of the tree; `host`: the destination's facts."""
    if asked != AUTO:
        return Choice(asked, "asked for")
    size = f"{memory / _MIB:.0f} MiB"
    if memory < _WORTH_AHEAD:
        return Choice(STOP, f"{size} are sent soonest at once")
    if host["userfault"] is not None:
        return Choice(STOP, f"{destination} cannot take it ahead: {host['userfault']}")
    if not host["images"]["tmpfs"]:  # what is none may have no file that large
        return Choice(STOP, f"{destination} cannot take it ahead: its images are on no tmpfs")
    return Choice(PRE_COPY, f"{size} go ahead while it runs", may_follow=True)


def told(choice: Choice, went: str, rounds: list[Any], limit: float) -> dict[str, str]:
    """{"mode", "why"} for a result. `went`: the mode that it came to; `limit`: seconds."""
    if went == STOP != choice.mode:
        return {"mode": went, "why": "it has too much mapped, used or not, to go ahead"}
    if went == choice.mode or len(rounds) < 2:
        return {"mode": choice.mode, "why": choice.why}
    last = rounds[-1]
    why = (
        f"it changes {last['bytes'] / _MIB:.0f} MiB while a round goes, which would stand still "
        f"for longer than {limit:g} s"
    )
    return {"mode": went, "why": why}


def no_rounds(rounds: int | None, mode: str, rounds_option: str, mode_option: str) -> str:
    """Why a mode does not go with so many rounds, by the names of the options; "" where it does."""
    if rounds is not None and mode == STOP:
        return f"{mode_option} stop has no rounds: leave {rounds_option} out"
    if rounds == 0 and mode != POST_COPY:
        return f"{rounds_option} 0 is only for {mode_option} post-copy: give at least 1"
    return ""
