"""What a journal says, and how: records of bytes, the states and facts in them. No I/O.

agent/journal.py has where they are kept, and when they are on disk.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgpack

from agent.kernel import proc
from agent.protocol import TABLES, Log

MAGIC = b"SFJ1"
HEAD = struct.Struct("!II")
_BODY = b"\x83\xa5state"  # how each body begins
_MOVES = [move for table in TABLES.values() for move in table.moves.values()]
_DECISIONS = {move.to for move in _MOVES if move.log is Log.DECISION} - {
    move.to for move in _MOVES if move.log is not Log.DECISION
}

FOREIGN = "it is of another version of Streamferry"

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record."""

    state: str
    at: float  # seconds since the epoch
    facts: Facts


@dataclass(slots=True)
class History:
    """A journal as it was read."""

    id: str
    role: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The last state that was recorded; the table's start where there is none."""
        states = [entry.state for entry in self.entries if entry.state]
        return states[-1] if states else TABLES[self.role].start

    @property
    def facts(self) -> Facts:
        """All facts; of one that was said twice the last."""
        return {name: value for entry in self.entries for name, value in entry.facts.items()}

    def summary(self) -> Facts:
        """What of it a list shows."""
        plan = self.facts.get("plan", {})
        return {
            "id": self.id,
            "role": self.role,
            "state": self.state if self.entries else "",
            "at": self.entries[-1].at if self.entries else 0.0,
            "pid": int(plan.get("pid", 0)),
            "source": str(plan.get("source", "")),
            "destination": str(plan.get("destination", "")),
            "other_host": str(self.facts.get("other_host", "")),
        }

    @property
    def agent(self) -> tuple[int, str]:
        """The PID of its agent and the letter of that one's state (proc_pid_stat(5)); 0 and "" when
        it is gone."""
        facts = self.facts
        pid, born = facts.get("agent"), facts.get("agent_born")
        if isinstance(pid, int) and born and proc.born(pid) == born:
            with contextlib.suppress(OSError):
                return pid, proc.stat(pid).state
        return 0, ""

    def entered(self, state: str) -> Entry | None:
        """The record of the last time that `state` was entered."""
        return next((one for one in reversed(self.entries) if one.state == state), None)


def packed(entry: Entry) -> bytes:
    """A record."""
    body: bytes = msgpack.packb({"state": entry.state, "at": entry.at, "facts": entry.facts})
    return HEAD.pack(len(body), zlib.crc32(body)) + body


def whole_records(data: bytes) -> tuple[list[Entry], int]:
    """The whole records from the beginning, and where the last of them ends."""
    entries: list[Entry] = []
    at = len(MAGIC)
    while data.startswith(MAGIC) and at + HEAD.size <= len(data):
        length, crc = HEAD.unpack_from(data, at)
        body = data[at + HEAD.size : at + HEAD.size + length]
        if not length or len(body) < length or zlib.crc32(body) != crc:
            break
        entries.append(_entry(body))
        at += HEAD.size + length
    return entries, at


def why_damaged(role: str, data: bytes, entries: list[Entry], end: int) -> str | None:
    """Why these, of `whole_records`, are not all that there was; None where they may be."""
    if not {entry.state for entry in entries} <= {"", *TABLES[role].states}:
        return FOREIGN
    if not entries and (why := _why_unread(data)) is not None:
        return why
    return "a record before a decision is damaged" if _decision_behind(data, end) else None


def _why_unread(data: bytes) -> str | None:
    """Why a journal without a whole record is not that of an agent which died before its first.

    The first is a decision: nothing is written behind it before it is on disk.
    """
    magic = data[: len(MAGIC)]
    if magic != MAGIC and any(magic) and not MAGIC.startswith(magic.rstrip(b"\0")):
        return "it is of another version of Streamferry, or is none"
    if len(data) < len(MAGIC) + HEAD.size:
        return None
    length, _ = HEAD.unpack_from(data, len(MAGIC))
    behind = data[len(MAGIC) + HEAD.size + length :]
    return "its first record is damaged" if length and any(behind) else None


def _decision_behind(data: bytes, end: int) -> bool:
    """Whether a whole decision lies behind what is not whole.

    The sync of a decision has put all before it on disk, too: that is damage, not a torn end.
    """
    at = data.find(_BODY, end)
    while at >= 0:
        length, crc = HEAD.unpack_from(data, at - HEAD.size)
        body = data[at : at + length]
        if len(body) == length and zlib.crc32(body) == crc and _entry(body).state in _DECISIONS:
            return True
        at = data.find(_BODY, at + 1)
    return False


def _entry(body: bytes) -> Entry:
    value = msgpack.unpackb(body)
    return Entry(str(value["state"]), float(value["at"]), dict(value["facts"]))
