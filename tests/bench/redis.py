"""A Redis of some size: what a move costs by each way its memory can go, beside the reference.

`python -m tests.bench.redis [ROUNDS [CASE ...]]` prints a table and writes results/redis.json. A
case is "small", or MB with "-writes" (50 MB/s, all over the data) or "-slow" (a link of 1 Gbit/s)
or nothing behind it. Eight clients count, each with a key of its own; the p99 stall is that of the
worst answer of each. Whether all data is the same afterwards is asked by DEBUG DIGEST, and what was
written is read back.
"""

from __future__ import annotations

import contextlib
import functools
import sys

from tests.bench.side_by_side import REFERENCE, Row, Table, Way
from tests.support.lab import SERVICE, Lab
from tests.support.workloads import start_redis

ROUNDS = 3
PORT = 6379
CASES = ("small", "100", "100-writes", "800", "800-writes", "800-slow", "4000", "4000-writes")
COUNTERS = 8
_KEY = 1000  # bytes of a value
_RATE = 50  # MB/s of writes
_SMALL = (Way("ours"), Way(REFERENCE, None))
_LARGE = (
    Way("stop", ("--memory", "stop", "--max-blackout", "100")),
    Way("pre-copy", ("--memory", "pre-copy")),
    Way("post-copy", ("--memory", "post-copy")),
    Way(REFERENCE, None),
)


def ask(lab: Lab, command: str) -> str:
    return lab.run("client", f"redis-cli -h {SERVICE} {command}")


def once(lab: Lab, case: str, way: Way) -> Row:
    size, _, how = case.partition("-")
    lab.clear()
    pid = start_redis(lab)
    keys = 0 if size == "small" else int(size) * 1_000_000 // _KEY
    if keys:
        with lab.client("redis_writer.py", SERVICE, PORT, keys, _KEY, 0) as filling:
            assert filling.result()["errors"] == []
    digest = ask(lab, "debug digest")
    with contextlib.ExitStack() as stack:
        if how == "slow":
            stack.enter_context(lab.limited("1gbit"))
        writer = None
        if how == "writes":
            program = ("redis_writer.py", SERVICE, PORT, keys, _KEY, _RATE)
            writer = stack.enter_context(lab.client(*program))
            writer.line()
        counters = ("redis_counter.py", SERVICE, PORT, COUNTERS, 1, 0.001)
        client = stack.enter_context(lab.client(*counters))
        client.line()
        row = way.move(lab, pid, PORT)
        seen = client.finish()
        errors = seen["errors"] + (writer.finish()["errors"] if writer is not None else [])
    ask(lab, "del " + " ".join(f"counter-{number}" for number in range(COUNTERS)))
    if errors or ask(lab, "debug digest") != digest:
        raise RuntimeError(f"{way.name}, {case}: {errors or 'the data is not the same'}")
    stalls = sorted(seen["stalls_ms"])
    return {**row, "stall_ms": stalls[-1], "p99_ms": stalls[int(len(stalls) * 0.99) - 1]}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    lab = Lab()
    table = Table(rounds)
    for case in sys.argv[2:] or CASES:
        ways = _SMALL if case == "small" else _LARGE
        table.case(case, ways, functools.partial(once, lab, case))
    lab.clear()
    table.write("redis")


if __name__ == "__main__":
    main()
