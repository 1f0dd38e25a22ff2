"""The parties cut from each other in the middle: one copy goes on, and in the end nothing is left.

The cut is made in silence (packets are dropped), held until the command has come to its end, or
longer than any of its patience, and then healed.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.cells import Sweep
from tests.chaos.cuts import CUTS, cut
from tests.support.lab import Lab, until

# Where the migration is held up for long enough to be cut, and what shows that it is there.
MOMENTS = {
    "before the freeze": ("locked@source=delay=1.5", "source", "locked"),
    "frozen": ("freeze@source=delay=1.5", "source", "frozen"),
    "restored": ("restored@destination=delay=1.5", "destination", "restoring"),
    "handed over": ("commit@destination=delay=1.5", "source", "handed-over"),
    "taking over": ("decide@destination=delay=1.5", "destination", "taking-over"),
    "committed": ("unlock@destination=delay=1.5", "destination", "committed"),
}
# `make chaos` asks for all: a silent cut takes half a minute to notice.
ALL = os.environ.get("STREAMFERRY_CHAOS") == "all"
TRIED = [
    (parties, moment)
    for parties in CUTS
    for moment in MOMENTS
    if ALL
    or (moment == "handed over" and parties != "orchestrator and source")
    or (parties, moment) == ("the agents", "frozen")
]


@pytest.fixture(scope="module")
def sweep(lab_of_the_session: Lab) -> Sweep:
    return Sweep(lab_of_the_session)


@pytest.mark.parametrize(("parties", "moment"), TRIED)
def test_cut_apart(sweep: Sweep, parties: str, moment: str) -> None:
    fault, role, state = MOMENTS[moment]
    lab = sweep.lab

    def disturb(source: str, destination: str, ended: object) -> None:
        host = source if role == "source" else destination
        until(lambda: lab.entered(host, state), 20, state)
        with cut(lab, parties, source, destination):
            until(ended, 150, "the command ends")  # type: ignore[arg-type]

    cell = sweep.cell(fault, disturb)
    assert cell.ok, cell.to_json()
