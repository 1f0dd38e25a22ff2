"""Recovery from every prefix of every path: a crash after each single step, then `migrate recover`.

A path is a migration with none or one thing going wrong; after each of its steps everything that
can die does, one at a time and together. The invariants are looked at after every step.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.protocol import DESTINATION, GONE, SOURCE
from tests.simulation.aims import early_recovery
from tests.simulation.campaign import some
from tests.simulation.faults import FOREVER, Fault
from tests.simulation.schedule import attempt, run
from tests.simulation.world import AGENTS

AGENT_OF = {role: f"{role} agent" for role in (SOURCE, DESTINATION)}
GUARDIAN_OF = {role: f"{role} guardian" for role in (SOURCE, DESTINATION)}


def kills(at: int, *names: str) -> list[Fault]:
    return [Fault(at, "kill", name) for name in names]


def crashes(at: int) -> Iterator[list[Fault]]:
    """Everything that can die after this step."""
    agents, guardians = AGENT_OF.values(), GUARDIAN_OF.values()
    for role in (SOURCE, DESTINATION):
        yield kills(at, AGENT_OF[role])
        yield kills(at, GUARDIAN_OF[role], AGENT_OF[role])
        yield [Fault(at, "hang", AGENT_OF[role], FOREVER)]
        for torn in (0.0, 0.5, 1.0):
            yield [Fault(at, "reboot", role, torn)]
    yield kills(at, *agents)
    yield kills(at, *guardians, *agents)
    yield kills(at, *guardians, *agents, "orchestrator")
    yield [Fault(at, "reboot", "both", 0.5)]
    yield [Fault(at, "cut", AGENTS, 150.0)]
    yield [Fault(at, "cut", "all", 150.0)]
    yield kills(at, "orchestrator")


_RECOVER = [Fault(50, "recover", "id")]
_LOST = ("move", SOURCE, "handed-over", "lost")
# What goes wrong, and a sign that it does so where it should.
PATHS: dict[str, tuple[list[Fault], tuple[str, ...]]] = {
    "nothing goes wrong": ([], ("ending", "migrated")),
    "cancelled": ([Fault(38, "cancel", SOURCE)], ("move", SOURCE, "frozen", "fail")),
    "the link breaks before the hand-over": (
        [Fault(45, "break", "link")], ("move", SOURCE, "shipped", "fail"),
    ),
    "the link breaks after the hand-over": (
        [Fault(58, "break", "link")], ("resolved", "committed"),
    ),
    "the hand-over is lost": ([Fault(50, "spoil", "lose")], ("fault", "lose", "handover")),
    "the hand-over cannot be written": (
        [Fault(40, "sync", SOURCE)], ("fault", "sync fails at", SOURCE, "handed-over"),
    ),
    "the commit cannot be written": (
        [Fault(45, "sync", DESTINATION)], ("move", DESTINATION, "taking-over", "fail"),
    ),
    "the destination's disk is full": (
        [Fault(45, "full", DESTINATION, 300.0)], ("move", DESTINATION, "restored", "fail"),
    ),
    "the source's disk is full": ([Fault(60, "full", SOURCE, 300.0)], ("ending", "migrated")),
    "the source's agent is killed in doubt": (
        [Fault(58, "break", "link"), *kills(62, AGENT_OF[SOURCE])], ("told", "migrated", ""),
    ),
    "the destination's agent is killed after the hand-over": (
        kills(60, AGENT_OF[DESTINATION]), _LOST,
    ),
    "the source's file system is read-only at its end": (
        [Fault(62, "read-only", SOURCE, 300.0)], ("fault", "journal stays", SOURCE, "handed-over"),
    ),
    "the destination's is when it undoes": (
        [Fault(45, "read-only", DESTINATION, 300.0)], ("guardian", "tries again", DESTINATION),
    ),
    "the source's lease ends in doubt": (
        [Fault(58, "break", "link"), Fault(60, "lease", SOURCE)],
        ("lease", "ends", SOURCE, "in-doubt"),
    ),
    "somebody recovers meanwhile": (_RECOVER, ("fault", "recover", "id")),
}  # fmt: skip


# The same where memory is still to come when the process runs at the destination: odd seeds.
LATE_PATHS: dict[str, tuple[list[Fault], tuple[str, ...]]] = {
    "nothing goes wrong": ([], ("move", DESTINATION, "running", "filled")),
    "the link breaks while memory is missing": (
        [Fault(61, "break", "link")], ("recovery", "fills"),
    ),
    "the source restarts while memory is missing": (
        [Fault(61, "reboot", SOURCE, 0.5)], ("found", DESTINATION, "running", "wait", GONE),
    ),
    "the destination does": (
        [Fault(61, "reboot", DESTINATION, 0.5)], ("told", "migrated", "lost"),
    ),
}  # fmt: skip


def check(faults: list[Fault], seed: int = 0) -> None:
    faults = sorted(faults, key=lambda fault: fault.at)
    if (what := attempt(seed, faults)) is not None:
        trace: list[str] = []
        with pytest.raises(Exception):  # noqa: B017, PT011
            run(seed, faults, trace)
        pytest.fail("\n".join([what, *map(str, faults), *trace]))


@pytest.mark.parametrize(
    ("seed", "path", "sign"),
    [
        pytest.param(seed, *path, id=f"{name}-{seed}")
        for seed, paths in enumerate((PATHS, LATE_PATHS))
        for name, path in paths.items()
    ],
)
def test_a_crash_after_each_step_of_a_path(
    seed: int, path: list[Fault], sign: tuple[str, ...]
) -> None:
    world = run(seed, path)
    length = world.steps
    assert length > 70 and world.cover[sign]
    for at in range(length):
        for crash in crashes(at):
            check([*path, *crash], seed)


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_a_crash_soon_after_each_action_that_fails(role: str) -> None:
    for at in range(85):
        for then in range(at, at + 16, 2):
            for other in (SOURCE, DESTINATION):
                fails = Fault(at, "fail", role, 1.0)
                check([fails, *kills(then, AGENT_OF[other])])
                check([fails, *kills(then, GUARDIAN_OF[other], AGENT_OF[other])])
                check([fails, Fault(then, "reboot", other, 1.0)])


def test_a_recovery_that_began_too_early_brings_no_old_word() -> None:
    total = some(0, 600, schedule=early_recovery)
    assert total.failure is None, "\n".join([str(total.failure), *total.failure.trace])
