"""The states of a workload that is drained, and what leads from one to another. Pure.

    waiting -> moving -> checking -> moved
                 |           `-----> returning -> returned
                 |           `-----> unwell         `-> unwell
                 `-> waiting, failed, in-doubt, lost

A workload is unavailable from the beginning of its migration until it is well, and for as long as
it is not: that is what a budget counts.
"""

from __future__ import annotations

WAITING = "waiting"
MOVING = "moving"
CHECKING = "checking"  # at the destination: is it well?
RETURNING = "returning"  # it was not: back to the node
MOVED = "moved"
RETURNED = "returned"
UNWELL = "unwell"  # wherever it is
FAILED = "failed"  # rolled back: it goes on at the node
IN_DOUBT = "in-doubt"
LOST = "lost"  # the copy that should go on has ended
IMMOVABLE = "immovable"  # found before anything moved
GONE = "gone"  # it has ended, or was moved by others, before its turn

MOVES: dict[str, frozenset[str]] = {
    WAITING: frozenset({MOVING, GONE, IMMOVABLE}),
    MOVING: frozenset({CHECKING, WAITING, FAILED, IN_DOUBT, LOST, GONE}),
    CHECKING: frozenset({MOVED, RETURNING, UNWELL, LOST}),
    RETURNING: frozenset({RETURNED, UNWELL, CHECKING, IN_DOUBT, LOST}),
    MOVED: frozenset(),
    RETURNED: frozenset(),
    UNWELL: frozenset(),
    FAILED: frozenset(),
    IN_DOUBT: frozenset({CHECKING, RETURNED, WAITING, LOST, GONE}),  # once it is recovered
    LOST: frozenset(),
    IMMOVABLE: frozenset(),
    GONE: frozenset(),
}
RUNNING = frozenset({MOVING, CHECKING, RETURNING})
UNAVAILABLE = RUNNING | {UNWELL, IN_DOUBT, LOST}
OVER = frozenset(MOVES) - RUNNING - {WAITING}
FAILURES = frozenset({RETURNED, UNWELL, FAILED, LOST})


def way(state: str, destination: str, moved: bool) -> str:
    """How it lies to its destination: "-> dst", "<- dst"; "" where it is on its node."""
    if state == RETURNING:
        return f"<- {destination}"
    there = {WAITING, MOVING, CHECKING, MOVED, IN_DOUBT, LOST} | ({UNWELL} if moved else set())
    return f"-> {destination}" if destination and state in there else ""


def whereabouts(state: str, node: str, destination: str, moved: bool) -> str:
    """Where it is, or is to go ("-> dst"); "" where nobody knows, or it is no more."""
    if state in (WAITING, MOVING):
        return f"-> {destination}" if destination else node
    if state == RETURNING:
        return f"-> {node}"
    if state in (IN_DOUBT, LOST, GONE):
        return ""
    return destination if state in (CHECKING, MOVED) or (state == UNWELL and moved) else node


class IllegalState(ValueError):
    """A fault of ours: no such step is in the table."""


def step(before: str, after: str) -> str:
    """`after`. Raises `IllegalState`, and changes nothing."""
    if after not in MOVES[before]:
        raise IllegalState(f"{before} -> {after}")
    return after
