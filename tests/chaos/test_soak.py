"""A short `make soak`."""

from __future__ import annotations

from tests.chaos.soak import run
from tests.support.lab import Lab


def test_nothing_grows(lab: Lab) -> None:
    soak = run(lab, 12, 50)
    assert soak.ok and soak.migrations == 12, (soak.failed, soak.errors, soak.grown)
