"""Whatever happens on the wire, and wherever a move comes: each byte arrives once and in order, to
the last one and the end, in both directions, and no reset is seen.

2,000 plans are run (STREAMFERRY_PROPERTY_RUNS for another number), found by Hypothesis from fixed
seeds, so each run of the tests has the same ones. `tests.support.traffic` has what a plan may do,
and what is checked. Of a plan that fails, made as small as can be in a minute, a script that
repeats it is printed, and left in results/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.lab import ROOT
from tests.support.sites import Lab
from tests.support.traffic import KINDS, MOVES, SHAPES, Plan, Run, Step, lab
from tests.support.wire import ENDS

RUNS = int(os.environ.get("STREAMFERRY_PROPERTY_RUNS", "2000"))
SEEDS = 10  # cases, each with its share of the runs
SHRINKING = 60.0  # seconds
RESULTS = ROOT / "results"

ends = st.sampled_from(ENDS)
sizes = st.sampled_from([1, 2, 100, 536, 1448, 1460, 5000, 20_000, 65_536, 200_000])
few = st.integers(1, 5)
reads = st.tuples(st.just("read"), ends, sizes)
on_the_wire = st.one_of(
    st.tuples(st.just("carry"), ends, st.sampled_from([1, 2, 3, 10])),
    st.tuples(st.sampled_from(["lose", "delay", "double"]), ends, few),
    st.tuples(st.just("flow"), st.integers(1, 4)),
)
windows = st.one_of(
    # At least two segments: the kernel itself never opens a window again that was less.
    st.tuples(st.just("clamp"), ends, st.sampled_from([3000, 8000, 20_000])),
    st.tuples(st.just("buffer"), ends, st.sampled_from([5000, 30_000, 100_000])),
)
moves = st.tuples(
    st.just("move"),
    st.sampled_from(MOVES),
    st.booleans(),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([0, 0, 1, 2, 5]),
)
steps = st.one_of(
    st.tuples(st.just("send"), ends, sizes),
    on_the_wire,
    st.tuples(st.just("send"), ends, sizes),
    on_the_wire,
    reads,
    windows,
    st.tuples(st.sampled_from(["shut", "fill"]), ends),
    st.tuples(st.just("wait"), st.sampled_from([1, 6, 12])),
)
send_buffers = st.sampled_from([0, 0, 1, 5000, 30_000])
receive_buffers = st.sampled_from([0, 0, 5000, 30_000])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """One to three moves, with something before, between and after them."""
    rows: list[Step] = draw(st.lists(steps, max_size=10))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        rows.append(draw(moves))
        rows += draw(st.lists(steps, max_size=6))
    names = st.sampled_from(["tcp_timestamps", "tcp_sack", "tcp_window_scaling"])
    return Plan(
        steps=tuple(rows),
        kind=draw(st.sampled_from(sorted(KINDS))),
        active=draw(st.booleans()),
        without=tuple(sorted(draw(st.sets(names, max_size=2)))),
        elsewhere=draw(st.booleans()),
        congestion=draw(st.sampled_from(["cubic", "cubic", "reno", "bbr"])),
        mss=draw(st.sampled_from([0, 0, 536, 1000])),
        nodelay=draw(st.booleans()),
        send_buffers=draw(st.tuples(send_buffers, send_buffers)),
        receive_buffers=draw(st.tuples(receive_buffers, receive_buffers)),
    )


FOUND = {
    "paced acknowledgement bears a time to come": Plan(
        steps=(
            ("fill", "service"),
            ("send", "client", 100),
            ("fill", "service"),
            ("move", "disconnect", False, False, 0, 0),
            ("send", "client", 1448),
            ("send", "service", 1),
            ("lose", "service", 1),
            ("move", "away", False, False, 0, 0),
            ("move", "away", False, True, 0, 0),
        ),
        congestion="bbr",
        mss=536,
    ),
    "a full window after the FIN": Plan(
        steps=(
            ("send", "client", 1448),
            ("shut", "client"),
            ("flow", 1),
            ("send", "service", 1),
            ("move", "away", False, False, 0, 0),
        ),
        without=("tcp_timestamps", "tcp_window_scaling"),
    ),
    "a client in TIME_WAIT takes its window back": Plan(
        steps=(
            ("send", "service", 1448),
            ("shut", "client"),
            ("flow", 1),
            ("shut", "service"),
            ("move", "away", False, False, 0, 0),
        ),
        without=("tcp_timestamps", "tcp_window_scaling"),
    ),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    with lab() as made:
        yield made


class Search:
    """Runs plans; once one has failed, for a limited time smaller ones."""

    def __init__(self, hosts: Lab) -> None:
        self._hosts = hosts
        self._smallest: Plan | None = None
        self._script = ""
        self._end = 0.0

    def run(self, plan: Plan) -> None:
        if self._smallest not in (None, plan) and time.monotonic() > self._end:
            return
        run = Run(self._hosts, plan)
        try:
            run.go()
        except Exception as error:
            if self._smallest is None:
                self._end = time.monotonic() + SHRINKING
            self._smallest = plan
            self._script = script(plan, [*run.trace, f"{type(error).__name__}: {error}"])
            raise

    def report(self) -> None:
        """Print and keep the script of what has failed."""
        if self._smallest is not None:
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"tcp-property-{os.getpid()}-{int(time.time())}.py"
            path.write_text(self._script)
            print(f"repeated by {path}:\n\n{self._script}")


def script(plan: Plan, trace: list[str]) -> str:
    rows = "".join(f"        {row!r},\n" for row in plan.steps)
    others = "".join(f"    {one.name}={getattr(plan, one.name)!r},\n" for one in fields(plan)[1:])
    seen = "".join(f"#   {line}\n" for line in trace[-300:])
    return f"""\
# Run as root: .venv/bin/python THIS [TIMES]. Packets: s from the service, c from the client;
# numbers count from the first byte, a window is shown by its right edge.
import sys

sys.path.insert(0, {str(ROOT)!r})
from tests.support.sites import Lab
from tests.support.traffic import KINDS, MOVES, Plan, Run, Step, lab
from tests.support.wire import ENDS

plan = Plan(
    steps=(
{rows}    ),
{others})
with lab() as hosts:
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
        run = Run(hosts, plan)
        try:
            run.go()
        except BaseException:
            print("\\n".join(run.trace))
            raise
print("did not fail")

# What was seen:
{seen}"""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(hosts: Lab, name: str) -> None:
    for _ in range(10):
        Run(hosts, FOUND[name]).go()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(SEEDS))
def test_every_byte_once_and_in_order(hosts: Lab, number: int) -> None:
    search = Search(hosts)
    check = settings(
        max_examples=RUNS // SEEDS,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )(given(plans())(search.run))
    try:
        seed(number)(check)()
    finally:
        search.report()


def test_the_plans_moved_every_shape(hosts: Lab) -> None:
    """What the plans above have moved, so that none of them passes for want of a case."""
    rare = ("LAST_ACK", "CLOSING")
    missing = [f"{how}: {shape}" for how in MOVES for shape in SHAPES if shape not in rare]
    missing = [one for one in (*missing, *rare) if not hosts.moved[one]]
    assert not missing, f"moved: {dict(hosts.moved)}"
