"""100,000 schedules hold, everything was in them, and a protocol that is broken does not hold."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import pytest

from agent.protocol import DESTINATION, GONE, SOURCE, TABLES, Log
from tests.simulation.__main__ import main
from tests.simulation.campaign import many, some
from tests.simulation.faults import EVERY_FAULT, choose
from tests.simulation.mutants import MUTANTS
from tests.simulation.schedule import attempt, minimised, run

SCHEDULES = 100_000
ENOUGH = 20  # times, at least, for each thing that is to be in them
SOON = 300  # schedules to the first that a mutant fails, at most

# An agent has made its first move before anything can fail it.
NEVER = {(role, "idle", "fail") for role in TABLES}
# Only a recovery ends a copy whose memory is lost; what strikes that is in test_prefixes.
_STARVED = {(DESTINATION, "running", "starved"), (DESTINATION, "starved", "ended")}


def _wanted() -> set[tuple[Any, ...]]:
    moves = {("move", role, *move) for role, table in TABLES.items() for move in table.moves} - {
        ("move", *one) for one in NEVER | _STARVED
    }
    journalled = {
        (role, move.to)
        for role, table in TABLES.items()
        for move in table.moves.values()
        if move.log is not Log.NOTHING and move.to != "starved"
    }
    found = {
        ("found", role, state, TABLES[role].states[state].found.value, "")
        for role, state in journalled
    }
    asked = {
        ("found", SOURCE, state, "ask", word)
        for state in ("handed-over", "in-doubt")
        for word in ("committed", "failed")
    } | {("found", DESTINATION, "running", "wait", GONE), ("recovery", "fills")}
    told = {
        *(("told", outcome, "") for outcome in ("migrated", "rolled-back", "in-doubt", "over")),
        *(("told", outcome, "lost") for outcome in ("migrated", "rolled-back")),
    }
    ends = {("ending", "migrated"), ("ending", "rolled-back"),
            ("resolved", "committed"), ("resolved", "failed")}  # fmt: skip
    words = {("fault", what, word) for what in ("lose", "double", "late")
             for word in ("lock", "locked", "end", "prepared", "handover", "committed",
                          "failed", "undo")}  # fmt: skip
    actions = {
        ("fault", "fails", role, action)
        for role, table in TABLES.items()
        for action in chain.from_iterable(move.do for move in table.moves.values())
        if not action.startswith("say_")
    }
    synced = {
        ("fault", "sync fails at", role, move.to)
        for role, table in TABLES.items()
        for move in table.moves.values()
        if move.log is Log.DECISION and move.to != "starved"
    }
    kept = {
        ("fault", what, role, state)
        for what in ("journal stays", "removal not synced")
        for role in TABLES
        for state in ("rolled-back", "migrated")
    }
    leases = {
        ("lease", "ends", role, state)
        for role, states in (
            (SOURCE, ("ready", "linked", "locked", "shipped", "handed-over", "in-doubt")),
            (DESTINATION, ("ready", "linked", "locked", "restored", "taking-over", "committed")),
        )
        for state in states
    }
    killed = {
        ("guardian", "kills", SOURCE, "frozen"),
        ("guardian", "kills", SOURCE, "handed-over"),
        ("guardian", "kills", DESTINATION, "committed"),
        ("recovery", "kills an agent in doubt"),
        *(("guardian", "tries again", role) for role in TABLES),
    }
    faults = {("fault", *one) for one in EVERY_FAULT} | {
        ("fault", "in resolve", how, state)
        for how in ("kill", "hang")
        for state in ("rolling-back", "committed")
    }
    return set().union(
        moves, found, asked, told, ends, words, actions, synced, kept, leases, killed, faults,
        {("found", role, "no journal") for role in TABLES},
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_whatever_happens_the_invariants_hold_after_every_step() -> None:
    *_, total = many(0, SCHEDULES)
    assert total.failure is None, str(total.failure) + "\n" + "\n".join(total.failure.trace)
    assert total.schedules == SCHEDULES
    rare = {what: total.cover[what] for what in _wanted() if total.cover[what] < ENOUGH}
    assert not rare, f"not enough of these: {rare}"
    assert not [one for one in NEVER if total.cover["move", *one]], "it does happen: list it"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_protocol_is_caught(name: str) -> None:
    found = some(0, SOON, name)
    assert found.failure is not None, MUTANTS[name].why
    assert "Violation" in found.failure.what
    assert found.failure.trace
    real = some(found.failure.seed, 1, schedule=MUTANTS[name].schedule)
    assert real.failure is None, "the real one holds there"


def test_a_mutant_is_run_through_many_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mutant", "impatient", "--first", "0", "--schedules", str(SOON)]) == 1
    assert "Violation" in capsys.readouterr().out


def test_a_schedule_is_repeated_from_its_seed() -> None:
    seen: Counter[int] = Counter()
    for seed in range(200):
        traces: list[list[str]] = [[], []]
        worlds = [run(seed, trace=trace) for trace in traces]
        assert traces[0] == traces[1]
        assert worlds[0].cover == worlds[1].cover
        seen[len(choose(seed))] += 1
    assert len(seen) > 4, "from none to many faults"


def test_a_failure_is_told_with_no_more_faults_than_it_takes() -> None:
    with MUTANTS["impatient"].in_place() as alter:
        seed = next(one for one in range(1000) if len(choose(one)) > 3 and _fails(one, alter))
        failure = minimised(seed, choose(seed), alter)
        assert 0 < len(failure.faults) < len(choose(seed))
        assert attempt(seed, failure.faults, alter) == failure.what
        for fault in failure.faults:
            fewer = [one for one in failure.faults if one is not fault]
            assert attempt(seed, fewer, alter) is None
    assert f"--seed {seed}" in str(failure) and failure.trace


def _fails(seed: int, alter: Any) -> bool:
    return attempt(seed, choose(seed), alter) is not None
