"""The offset between two clocks: never further from the truth than its error says."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agent.clock import ClockOffset

SECONDS = st.floats(0, 10)


def test_before_the_first_sample_nothing_is_known() -> None:
    clock = ClockOffset()
    assert (clock.offset, clock.error) == (0.0, math.inf)


def test_an_even_round_trip_is_exact() -> None:
    clock = ClockOffset()
    clock.sample(100.0, 600.25, 100.5)
    assert (clock.offset, clock.error) == (500.0, 0.25)


def test_the_shortest_round_trip_counts() -> None:
    clock = ClockOffset()
    clock.sample(0.0, 501.0, 4.0)
    clock.sample(10.0, 510.5, 11.0)
    clock.sample(20.0, 523.0, 22.0)
    assert (clock.offset, clock.error) == (500.0, 0.5)


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0, 1e6), SECONDS, SECONDS), min_size=1, max_size=8),
)
def test_the_truth_is_within_the_error(
    truth: float, exchanges: list[tuple[float, float, float]]
) -> None:
    """Whatever the two ways take: `there` and `back`."""
    clock = ClockOffset()
    for sent, there, back in exchanges:
        clock.sample(sent, sent + there + truth, sent + there + back)
    assert abs(clock.offset - truth) <= clock.error + 1e-6
    shortest = min(there + back for _, there, back in exchanges)
    assert math.isclose(clock.error, shortest / 2, abs_tol=1e-6)
