"""A part of `make chaos`: each point of both agents, killed; and one of each other kind."""

from __future__ import annotations

import pytest

from agent.fault import CORRUPT, CUT, DESTINATION, ERROR, FULL, HANG, KILL, POINTS, SOURCE
from tests.chaos.cells import Sweep, faults
from tests.support.lab import Lab

KILLS = [f"{one.name}@{one.role}={KILL}" for one in POINTS if one.role in (SOURCE, DESTINATION)]
OTHERS = [
    f"decide@destination={FULL}", f"unlock@destination={FULL}", f"decided@source={CORRUPT}",
    f"handover@source={CUT}", f"unlock@destination={CUT}", f"handover@link={CUT}",
    f"committed@link={CORRUPT}", f"freeze@source={HANG}", f"release@destination={HANG}",
    f"handover@link={HANG}", f"release@destination={ERROR}", f"end@source={ERROR}",
    f"ship@orchestrator={KILL}", f"commit@orchestrator={CORRUPT}",
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
