"""The states of a migration on either host, in one table. No I/O.

Safety, in words: at most one copy of the process may run. The source's copy stops before its
state is sent, and runs again only from `rolling-back`; the destination's copy runs only from
`migrated`. The source enters `rolling-back` by itself only before `handed-over`, and the
destination cannot pass `restored` without the hand-over. From `handed-over` on, the source moves
only by the destination's own word, and the destination says "failed" only when it has undone
everything, "committed" only when it has crossed its commit point. So never both.

`docs/make_states.py` draws docs/states.md from this table.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "source"
DESTINATION = "destination"


class IllegalTransition(Exception):
    """An event that the table does not allow in this state: a fault of ours."""


@dataclass(frozen=True, slots=True)
class State:
    """One state: what is true of the process in it, and what leaving it backwards undoes."""

    name: str
    copy: str  # "runs", "frozen", "none" or "stopped": this host's copy of the process
    undo: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The states of one role; `moves` maps (state, event) to the next state."""

    role: str
    states: dict[str, State]
    moves: dict[tuple[str, str], str]
    start: str
    committed: frozenset[str]  # states from which nothing is undone by this host alone


def _table(
    role: str,
    states: list[State],
    moves: dict[tuple[str, str], str],
    undoing: str,
    can_fail: list[str],
    committed: set[str],
) -> Table:
    every = dict(moves)
    for name in can_fail:
        every[name, "fail"] = undoing
    names = {state.name: state for state in states}
    return Table(role, names, every, states[0].name, frozenset(committed))


SOURCE_TABLE = _table(
    SOURCE,
    [
        State("idle", "runs"),
        State("ready", "runs", "close descriptors, remove the images directory"),
        State("linked", "runs", "close the link"),
        State("locked", "runs", "unlock, replay what the peers sent"),
        State("frozen", "frozen", "leave repair mode, continue the tree"),
        State("shipped", "frozen", "tell the destination to undo"),
        State("handed-over", "frozen", "add and announce the addresses"),
        State("in-doubt", "frozen"),
        State("migrated", "none"),
        State("rolling-back", "frozen"),
        State("rolled-back", "runs"),
    ],
    {
        ("idle", "prepare"): "ready",
        ("ready", "connect"): "linked",
        ("linked", "lock"): "locked",
        ("locked", "freeze"): "frozen",
        ("frozen", "ship"): "shipped",
        ("shipped", "hand-over"): "handed-over",
        ("handed-over", "committed"): "migrated",
        ("handed-over", "failed"): "rolling-back",
        ("handed-over", "lost"): "in-doubt",
        ("in-doubt", "committed"): "migrated",
        ("in-doubt", "failed"): "rolling-back",
        ("rolling-back", "undone"): "rolled-back",
    },
    undoing="rolling-back",
    can_fail=["idle", "ready", "linked", "locked", "frozen", "shipped"],
    committed={"handed-over", "in-doubt", "migrated"},
)

DESTINATION_TABLE = _table(
    DESTINATION,
    [
        State("idle", "none"),
        State("ready", "none", "stop listening, remove the images directory"),
        State("linked", "none", "close the link"),
        State("locked", "none", "abandon the streams, unlock"),
        State("restored", "stopped", "kill the tree"),
        State("taking-over", "stopped", "remove the addresses"),
        State("migrated", "runs"),
        State("undoing", "none"),
        State("rolled-back", "none"),
    ],
    {
        ("idle", "prepare"): "ready",
        ("ready", "connect"): "linked",
        ("linked", "lock"): "locked",
        ("locked", "restore"): "restored",
        ("restored", "hand-over"): "taking-over",
        ("taking-over", "release"): "migrated",
        ("undoing", "undone"): "rolled-back",
    },
    undoing="undoing",
    can_fail=["idle", "ready", "linked", "locked", "restored", "taking-over"],
    committed={"migrated"},
)


class Machine:
    """Where one host is in its table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.state = table.start

    def on(self, event: str) -> None:
        """Move on. Raises `IllegalTransition` and changes nothing where the table has no move."""
        try:
            self.state = self.table.moves[self.state, event]
        except KeyError:
            raise IllegalTransition(
                f"{event!r} in state {self.state!r} of the {self.table.role}"
            ) from None

    @property
    def committed(self) -> bool:
        """Whether this host may not undo by itself."""
        return self.state in self.table.committed
