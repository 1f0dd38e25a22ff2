"""A part of `make chaos`: each point of both agents, killed; and one of each other kind."""

from __future__ import annotations

import pytest

from agent.fault import CORRUPT, CUT, DESTINATION, ERROR, FULL, HANG, KILL, POINTS, SOURCE
from tests.chaos.cells import Sweep, faults
from tests.support.lab import Lab

KILLS = [f"{one.name}@{one.role}={KILL}" for one in POINTS if one.role in (SOURCE, DESTINATION)]
OTHERS = [
    f"prepared@source={FULL}", f"decide@destination={FULL}", f"ship@destination={FULL}",
    f"unlock@destination={FULL}", f"lock@source={CORRUPT}", f"decided@source={CORRUPT}",
    f"restored@destination={CORRUPT}", f"unlock@destination={CORRUPT}", f"freeze@source={CUT}",
    f"handover@source={CUT}", f"commit@destination={CUT}", f"unlock@destination={CUT}",
    f"streams@link={CUT}", f"handover@link={CUT}", f"committed@link={CUT}",
    f"handover@link={CORRUPT}", f"committed@link={CORRUPT}", f"freeze@source={HANG}",
    f"take_over@destination={HANG}", f"release@destination={HANG}", f"handover@link={HANG}",
    f"release@destination={ERROR}", f"handover@source={ERROR}", f"end@source={ERROR}",
    f"lock@orchestrator={KILL}", f"ship@orchestrator={KILL}", f"commit@orchestrator={KILL}",
    f"settle@orchestrator={KILL}", f"freeze@orchestrator={CUT}", f"commit@orchestrator={CORRUPT}",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(lab_of_the_session: Lab) -> Sweep:
    return Sweep(lab_of_the_session)


@pytest.mark.parametrize("fault", KILLS + OTHERS)
def test_a_fault(sweep: Sweep, fault: str) -> None:
    cell = sweep.cell(fault)
    assert cell.ok, cell.to_json()


def test_these_are_part_of_the_sweep() -> None:
    assert len(set(KILLS + OTHERS)) >= 40 and set(KILLS + OTHERS) <= set(faults())
