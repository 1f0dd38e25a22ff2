"""The protocol, deliberately broken: each of these the simulation must catch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from agent.errors import AgentError
from agent.protocol import DESTINATION, GONE, SOURCE, TABLES, Found, Log, Move, Table
from orchestrator.recovery import Recovered, carry
from tests.simulation.aims import (
    another_destination,
    early_recovery,
    unreachable_source,
    unsynced_commit,
)
from tests.simulation.faults import Fault, choose
from tests.simulation.world import World

Tables = dict[str, Table]


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is broken, and how."""

    name: str
    why: str
    tables: Callable[[Tables], Tables] = lambda tables: tables
    world: Callable[[World], None] | None = None
    schedule: Callable[[int], list[Fault]] = choose  # the faults of a seed

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Callable[[World], None] | None]:
        """In place of the real tables, in this process."""
        real = dict(TABLES)
        TABLES.update(self.tables(dict(real)))
        try:
            yield self.world
        finally:
            TABLES.update(real)


def _moves(role: str, changed: dict[tuple[str, str], Move]) -> Callable[[Tables], Tables]:
    def broken(tables: Tables) -> Tables:
        table = tables[role]
        return {**tables, role: replace(table, moves={**table.moves, **changed})}

    return broken


def _states(role: str, found: dict[str, Found]) -> Callable[[Tables], Tables]:
    def broken(tables: Tables) -> Tables:
        table = tables[role]
        changed = {name: replace(table.states[name], found=rule) for name, rule in found.items()}
        return {**tables, role: replace(table, states={**table.states, **changed})}

    return broken


def _word(state: str, word: str | None) -> Callable[[Tables], Tables]:
    def broken(tables: Tables) -> Tables:
        table = tables[DESTINATION]
        changed = {state: replace(table.states[state], word=word)}
        return {**tables, DESTINATION: replace(table, states={**table.states, **changed})}

    return broken


def _move(role: str, state: str, event: str, **changed: object) -> Callable[[Tables], Tables]:
    move = TABLES[role].moves[state, event]
    return _moves(role, {(state, event): replace(move, **changed)})  # type: ignore[arg-type]


def _unheard(tables: Tables) -> Tables:
    return {**tables, DESTINATION: replace(tables[DESTINATION], unheard="committed")}


def _keeps(world: World) -> None:
    world.erases = False


def _undoes_thawing_first(tables: Tables) -> Tables:
    changed = {
        on: replace(move, do=("say_undo", "take_back_addresses", "thaw", "release", "unlock"))
        for on, move in tables[SOURCE].moves.items()
        if move.to == "rolling-back"
    }
    return _moves(SOURCE, changed)(tables)


async def _destination_first(ask: Any, told: Any, forget: Any) -> Recovered:
    """`carry`, with the two questions in the other order."""
    first = await ask(DESTINATION, None)

    async def ask_again(role: str, word: str | None) -> Any:
        if role == DESTINATION:
            return first
        known = None if isinstance(first, AgentError) else first["word"]
        return await ask(role, word or known)

    return await carry(ask_again, told, forget)


def _asks_destination_first(world: World) -> None:
    """Either is enough: a destination that knows nothing yet was not told to the source either."""
    world.carry = _destination_first
    world.vouched = lambda side, named, role: side


def _believes_anyone(world: World) -> None:
    world.vouched = lambda side, named, role: side


def _starves(world: World) -> None:
    async def broken(ask: Any, told: Any, forget: Any) -> Recovered:
        await ask(DESTINATION, GONE)
        return await carry(ask, told, forget)

    world.carry = broken


def _forgets_early(world: World) -> None:
    async def broken(ask: Any, told: Any, forget: Any) -> Recovered:
        ended = await carry(ask, told, forget)
        if not isinstance(ended.destination, AgentError):
            with contextlib.suppress(AgentError):
                await forget(DESTINATION)
        return ended

    world.carry = broken


_GO_ON = TABLES[SOURCE].moves["handed-over", "failed"].do

MUTANTS = {
    one.name: one
    for one in (
        Mutant(
            "impatient",
            "the source goes on when it hears nothing after the hand-over",
            _moves(SOURCE, {("handed-over", "lost"): Move("rolling-back", _GO_ON, Log.DECISION)}),
        ),
        Mutant(
            "handover-undone",
            "whoever follows a source's agent that had handed over goes on",
            lambda tables: _moves(
                SOURCE, {("handed-over", "fail"): Move("rolling-back", _GO_ON, Log.NOTE)}
            )(_states(SOURCE, {"handed-over": Found.FAIL})(tables)),
        ),
        Mutant(
            "commit-noted",
            "the destination's commit is a note",
            _move(DESTINATION, "taking-over", "commit", log=Log.NOTE),
        ),
        Mutant(
            "handover-noted",
            "the source's hand-over is a note",
            _move(SOURCE, "shipped", "prepared", log=Log.NOTE),
        ),
        Mutant(
            "run-noted",
            "the destination's decision to run without all of the memory is a note",
            _move(DESTINATION, "taking-over", "run", log=Log.NOTE),
        ),
        Mutant(
            "ended-while-filling",
            "a destination that waits for memory says that it has all",
            _word("running", "committed"),
        ),
        Mutant(
            "starved-early",
            "a recovery tells a destination that waits for memory that there is none any more",
            world=_starves,
        ),
        Mutant("unheard-committed", "a destination without a journal says it has it", _unheard),
        Mutant(
            "word-wrong",
            "a destination that has undone its part says that it has it",
            _word("rolled-back", "committed"),
        ),
        Mutant(
            "unlocked-early",
            "the destination unlocks when it begins to restore",
            _move(DESTINATION, "locked", "restore", do=("unlock", "restore")),
        ),
        Mutant(
            "undone-unlocked-first",
            "the destination unlocks before it has ended its copy",
            lambda tables: _moves(
                DESTINATION,
                {
                    (state, event): replace(move, do=("unlock", "kill", "drop_addresses"))
                    for (state, event), move in tables[DESTINATION].moves.items()
                    if move.to == "undoing"
                },
            )(tables),
        ),
        Mutant(
            "ended-early",
            "the source ends its copy when it hands over",
            _move(SOURCE, "shipped", "prepared", do=("give_addresses", "say_handover", "end_copy")),
        ),
        Mutant(
            "unlocked-before-the-end",
            "the source unlocks before its copy has ended",
            lambda tables: _moves(
                SOURCE,
                {
                    (state, "committed"): replace(move, do=("unlock", "end_copy"))
                    for (state, event), move in tables[SOURCE].moves.items()
                    if event == "committed"
                },
            )(tables),
        ),
        Mutant(
            "address-kept",
            "the source hands over and keeps its addresses",
            _move(SOURCE, "shipped", "prepared", do=("say_handover",)),
        ),
        Mutant(
            "released-early",
            "the destination lets streams go before the commit",
            _move(DESTINATION, "restored", "hand-over", do=("take_addresses", "release")),
        ),
        Mutant(
            "undone-thawed-first",
            "the source undoes in the order thaw, release, unlock",
            _undoes_thawing_first,
        ),
        Mutant(
            "thawed-before-release",
            "the destination lets its copy go before the streams",
            _move(
                DESTINATION,
                "taking-over",
                "commit",
                do=("unlock", "thaw", "release", "say_committed"),
            ),
        ),
        Mutant(
            "commit-undone",
            "a destination killed after the commit is undone",
            lambda tables: _moves(
                DESTINATION,
                {
                    ("committed", "fail"): Move(
                        "undoing", ("kill", "drop_addresses", "unlock"), Log.NOTE
                    )
                },
            )(_states(DESTINATION, {"committed": Found.FAIL})(tables)),
        ),
        Mutant(
            "journal-keeps",
            "a decision that could not be synced stays in the journal",
            world=_keeps,
            schedule=unsynced_commit,
        ),
        Mutant(
            "forgotten-early",
            "a recovery has the destination forget before the source has ended",
            world=_forgets_early,
            schedule=unreachable_source,
        ),
        Mutant(
            "destination-first",
            "a recovery asks the destination before the source, and believes whoever answers",
            world=_asks_destination_first,
            schedule=early_recovery,
        ),
        Mutant(
            "believes-anyone",
            "a recovery takes another machine, by the destination's name, for the destination",
            world=_believes_anyone,
            schedule=another_destination,
        ),
    )
}
