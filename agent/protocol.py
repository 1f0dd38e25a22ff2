"""The commit protocol of a migration, as two tables: one for each host. No I/O.

docs/protocol.md has the argument for its safety, and diagrams drawn from these tables. In short:
at most one copy of the process may run, and one must always be able to. The source's copy stops
before its state is sent, and runs again only from `rolling-back`; the destination's copy runs only
from `running` or `committed`. The destination alone decides: by the decision `run` or `commit`, on
disk before the first packet leaves. It can pass `restored` only by the hand-over, and the source
has given up every right of its own to go on (`handed-over`, on disk) before it says so. From then
on the source asks. In `running` the destination has not yet all of the memory (post-copy): it has
no word for the source, whose copy stays, frozen, until `committed`.

Agents, their guardians, `migrate recover` and the simulator (tests/simulation) all go by these
tables: what to do at an event, what of it goes into the journal, what a word of the other host
means in a state, what to do when nothing is heard, and what when an agent is found dead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SOURCE = "source"
DESTINATION = "destination"


class IllegalTransition(Exception):
    """An event that the table does not allow in this state: a fault of ours."""


class Log(Enum):
    """How a move gets into the journal, before anything of it is done."""

    NOTHING = ""
    NOTE = "note"  # outlives the agent, not the host: all that it is about does not, either
    DECISION = "decision"  # on disk: fsync


class Found(Enum):
    """What is to be done for an agent that was found dead in a state."""

    FAIL = "fail"  # as at the event `fail`
    AGAIN = "again"  # what the state's last move does, all of which may be done twice
    WAIT = "wait"  # what the state's last move does; on from there leads only the other host
    ASK = "ask"  # only the other host's word helps
    OVER = "over"  # nothing


@dataclass(frozen=True, slots=True)
class State:
    """What is true in a state: this host's copy of the process, and what a dead agent leaves."""

    name: str
    copy: str  # "runs", "frozen" (the source's), "stopped" (the destination's) or "none"
    found: Found
    word: str | None = None  # the destination's answer to a source that asks; None: not yet


@dataclass(frozen=True, slots=True)
class Move:
    """Where an event leads, how that is recorded, and what is then done, in this order."""

    to: str
    do: tuple[str, ...] = ()
    log: Log = Log.NOTHING


@dataclass(frozen=True, slots=True)
class Table:
    """The protocol of one host."""

    role: str
    states: dict[str, State]
    moves: dict[tuple[str, str], Move]
    start: str
    committed: frozenset[str]  # states from which nothing is undone by this host alone
    hears: dict[tuple[str, str], str]  # (state, word of the other host): event; others say nothing
    silence: dict[str, str]  # state: the event when the other host has not been heard in time
    unheard: str | None = field(default=None)  # its answer about a migration it knows nothing of

    def heard(self, state: str, word: str) -> str | None:
        """The event that a word means in a state; None where it is late, doubled or out of turn.

        An agent asks only when the state's own work is done: an early `prepared` has to wait. What
        means `fail` it need not let wait.
        """
        return self.hears.get((state, word))


_NOTE, _DECISION = Log.NOTE, Log.DECISION
_FAIL, _AGAIN, _WAIT, _ASK, _OVER = Found.FAIL, Found.AGAIN, Found.WAIT, Found.ASK, Found.OVER

GONE = "gone"  # the word for a destination that the source's copy is no more
SETTLED = (
    "settled"  # the word for a destination that its source asks nothing: it has ended its part
)

_GO_ON_HERE = ("take_back_addresses", "unlock", "release", "thaw")
_END_HERE = ("end_copy", "give_addresses", "unlock")
_ENDING = frozenset({"end_copy", "kill"})
_SOURCE_BEFORE = ("idle", "ready", "linked", "locked", "frozen", "shipped")

SOURCE_TABLE = Table(
    role=SOURCE,
    start="idle",
    states={
        state.name: state
        for state in (
            State("idle", "runs", _OVER),
            State("ready", "runs", _FAIL),
            State("linked", "runs", _FAIL),
            State("locked", "runs", _FAIL),
            State("frozen", "frozen", _FAIL),
            State("shipped", "frozen", _FAIL),
            State("handed-over", "frozen", _ASK),
            State("in-doubt", "frozen", _ASK),
            State("rolling-back", "frozen", _AGAIN),
            State("rolled-back", "runs", _OVER),
            State("committed", "frozen", _AGAIN),
            State("migrated", "none", _OVER),
        )
    },
    moves={
        ("idle", "prepare"): Move("ready", (), _DECISION),
        ("ready", "connect"): Move("linked"),
        ("linked", "lock"): Move("locked", ("lock",), _NOTE),
        ("locked", "freeze"): Move("frozen", ("freeze", "ship"), _NOTE),
        ("frozen", "shipped"): Move("shipped"),
        ("shipped", "prepared"): Move("handed-over", ("give_addresses", "say_handover"), _DECISION),
        ("handed-over", "lost"): Move("in-doubt", (), _NOTE),
        **{
            (state, event): move
            for state in ("handed-over", "in-doubt")
            for event, move in (
                ("committed", Move("committed", _END_HERE, _DECISION)),
                ("failed", Move("rolling-back", _GO_ON_HERE, _DECISION)),
            )
        },
        **{
            (state, "fail"): Move("rolling-back", ("say_undo", *_GO_ON_HERE), _NOTE)
            for state in _SOURCE_BEFORE
        },
        ("rolling-back", "undone"): Move("rolled-back", (), _DECISION),
        ("committed", "ended"): Move("migrated", (), _DECISION),
    },
    committed=frozenset({"handed-over", "in-doubt", "committed", "migrated"}),
    hears={
        ("linked", "locked"): "lock",
        ("shipped", "prepared"): "prepared",
        ("handed-over", "committed"): "committed",
        ("in-doubt", "committed"): "committed",
        ("handed-over", "failed"): "failed",
        ("in-doubt", "failed"): "failed",
        **{(state, "failed"): "fail" for state in _SOURCE_BEFORE[1:]},
    },
    silence={**dict.fromkeys(_SOURCE_BEFORE[1:], "fail"), "handed-over": "lost"},
)

_LEAVE_NOTHING = ("kill", "drop_addresses", "unlock")
_DESTINATION_BEFORE = (
    "idle", "ready", "linked", "locked", "restoring", "restored", "taking-over",
)  # fmt: skip

DESTINATION_TABLE = Table(
    role=DESTINATION,
    start="idle",
    states={
        state.name: state
        for state in (
            State("idle", "none", _OVER),
            State("ready", "none", _FAIL),
            State("linked", "none", _FAIL),
            State("locked", "none", _FAIL),
            State("restoring", "stopped", _FAIL),
            State("restored", "stopped", _FAIL),
            State("taking-over", "stopped", _FAIL),
            State("undoing", "stopped", _AGAIN),
            State("rolled-back", "none", _OVER, "failed"),
            State("running", "runs", _WAIT),
            State("starved", "none", _AGAIN, "committed"),
            State("committed", "runs", _AGAIN, "committed"),
            State("migrated", "runs", _OVER, "committed"),
        )
    },
    moves={
        ("idle", "prepare"): Move("ready", (), _DECISION),
        ("ready", "connect"): Move("linked"),
        ("linked", "lock"): Move("locked", ("lock", "say_locked"), _NOTE),
        ("locked", "restore"): Move("restoring", ("restore",), _NOTE),
        ("restoring", "restored"): Move("restored", ("say_prepared",)),
        ("restored", "hand-over"): Move("taking-over", ("take_addresses",), _NOTE),
        ("taking-over", "commit"): Move(
            "committed", ("unlock", "release", "thaw", "say_committed"), _DECISION
        ),
        ("taking-over", "run"): Move(
            "running", ("unlock", "release", "thaw", "say_running"), _DECISION
        ),
        ("running", "filled"): Move("committed", ("say_committed",), _DECISION),
        ("running", "starved"): Move("starved", ("kill",), _DECISION),
        ("starved", "ended"): Move("migrated", (), _DECISION),
        ("committed", "ended"): Move("migrated", (), _DECISION),
        **{
            (state, "fail"): Move("undoing", _LEAVE_NOTHING, _NOTE) for state in _DESTINATION_BEFORE
        },
        ("undoing", "undone"): Move("rolled-back", ("say_failed",), _DECISION),
    },
    committed=frozenset({"running", "starved", "committed", "migrated"}),
    hears={
        ("linked", "lock"): "lock",
        ("locked", "end"): "restore",
        ("restored", "handover"): "hand-over",
        ("running", GONE): "starved",
        **{(state, "undo"): "fail" for state in _DESTINATION_BEFORE[1:-1]},
    },
    silence=dict.fromkeys(_DESTINATION_BEFORE[1:-1], "fail"),
    unheard="failed",
)

TABLES = {table.role: table for table in (SOURCE_TABLE, DESTINATION_TABLE)}

Record = Callable[[str, Log, dict[str, Any]], None]


def _nowhere(state: str, log: Log, facts: dict[str, Any]) -> None:
    """For tests, and for a machine that stands for another."""


class Machine:
    """Where one host is in its table. Each move is recorded before it counts."""

    def __init__(self, table: Table, record: Record = _nowhere, state: str | None = None) -> None:
        """`state`: where a journal says it is, in place of the start."""
        self.table = table
        self.state = table.start if state is None else state
        self._record = record

    def on(self, event: str, **facts: object) -> tuple[str, ...]:
        """Move on; returns what is to be done. `facts` go into the journal with the state.

        Raises `IllegalTransition` where the table has no move, and what the journal raises; the
        state is then as before.
        """
        move = self._move(event)
        if move.log is not Log.NOTHING:
            self._record(move.to, move.log, facts)
        self.state = move.to
        return move.do

    def back(self, event: str) -> tuple[str, ...]:
        """As `on`, for moves that undo or end, which a full disk must not keep from being made.

        Unrecorded, they are made again by whoever finds the journal, and do no harm then.
        """
        move = self._move(event)
        with contextlib.suppress(Exception):
            self._record(move.to, move.log, {})
        self.state = move.to
        return move.do

    def _move(self, event: str) -> Move:
        try:
            return self.table.moves[self.state, event]
        except KeyError:
            raise IllegalTransition(
                f"{event!r} in state {self.state!r} of the {self.table.role}"
            ) from None

    @property
    def committed(self) -> bool:
        """Whether this host may not undo by itself."""
        return self.state in self.table.committed


def may_follow(action: str, failed: Collection[str]) -> bool:
    """Whether to take an action of a move that undoes or ends, where others of it have `failed`.

    All are, but for the lock: it stays while a copy that was to be ended may still be there, whose
    sockets would answer.
    """
    return action != "unlock" or _ENDING.isdisjoint(failed)


def ending(table: Table, state: str) -> str:
    """The event that ends a state of `Found.AGAIN`, when all of its work is done."""
    return next(event for (start, event) in table.moves if start == state)


def again(table: Table, state: str) -> tuple[str, ...]:
    """All that the moves into a state may have left to do; doing it twice does no harm."""
    found: dict[str, None] = {}
    for move in table.moves.values():
        if move.to == state:
            found.update(dict.fromkeys(move.do))
    return tuple(found)


def taken_over(machine: Machine, word: str | None) -> tuple[str, ...] | None:
    """Move on for an agent that was found dead, with the other host's `word` where there is one.

    Returns what is to be done before `ending`; None where nothing is, or nothing can be yet.
    """
    rule = machine.table.states[machine.state].found
    if rule is Found.FAIL:
        return machine.back("fail")
    if rule is Found.AGAIN:
        return again(machine.table, machine.state)
    event = None if word is None else machine.table.heard(machine.state, word)
    if rule in (Found.ASK, Found.WAIT) and event is not None:
        return machine.back(event)
    if rule is Found.WAIT:
        return again(machine.table, machine.state)
    return None
