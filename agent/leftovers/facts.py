"""The shapes of what `doctor.look` and `doctor.fix` answer; the orchestrator validates them."""

from __future__ import annotations

from typing import TypedDict

# What may be done about a leftover.
CLEAR = "clear"  # safe: `doctor --fix` does it
RECOVER = "recover"  # only the other host's word helps: `migrate recover`
HAND = "hand"  # not ours to decide: a person has to

# Kinds, in the order in which they are shown.
JOURNAL = "journal"
PROCESS = "process"
SOCKETS = "sockets"
TABLE = "table"
IMAGES = "images"
ADDRESS = "address"
AGENT = "agent"
GUARDIAN = "guardian"
CRIU = "criu"
CRIU_LOCK = "criu-lock"
CGROUP = "cgroup"
KINDS = (
    JOURNAL, PROCESS, SOCKETS, TABLE, IMAGES, ADDRESS, AGENT, GUARDIAN, CRIU, CRIU_LOCK, CGROUP,
)  # fmt: skip


class Finding(TypedDict):
    """One leftover."""

    kind: str  # of KINDS
    name: str  # which one: a table, a path, a process ...
    migration: str  # its id; "" where it is of none of ours
    detail: str  # what is wrong with it
    verdict: str  # CLEAR, RECOVER or HAND
    clearing: str  # what clearing it does; where that is not safe, why
    command: str  # HAND: what a person can run; else ""


class UnderWay(TypedDict):
    """A migration whose agent lives: nothing of it is a leftover."""

    id: str
    role: str
    state: str
    pid: int
    agent: int  # its PID; 0 where another is at work with the journal
    stopped: bool  # that agent: it gets on with nothing


class Look(TypedDict):
    findings: list[Finding]
    under_way: list[UnderWay]
    notes: list[str]  # what could not be looked at, and what was left out for a reason


class Fixed(TypedDict):
    cleared: list[Finding]
    errors: list[str]  # why something safe is still there
    left: Look
