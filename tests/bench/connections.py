"""Many connections: what a move costs with 1 to 10,000 of them, beside the reference.

`python -m tests.bench.connections [ROUNDS [COUNT ...]]` prints a table and writes
results/connections.json. A server that uses epoll has the connections. Idle: one of them is asked
every millisecond, the others rest. Busy: they are asked in turn, 2,000 times a second in all. Each
is asked once before the move and once after it, and every byte is compared. The p99 stall is that
of the worst answer of each connection that was asked meanwhile.
"""

from __future__ import annotations

import functools
import sys

from tests.bench.side_by_side import WAYS, Row, Table, Way
from tests.support.lab import SERVICE, Lab
from tests.support.workloads import start_server

COUNTS = (1, 100, 1_000, 10_000)
ROUNDS = 5
PORT = 7000
MODES = {"idle": (1000, 1), "busy": (2000, 0)}  # requests a second, connections asked (0: all)


def once(lab: Lab, count: int, mode: str, way: Way) -> Row:
    lab.clear()
    pid = start_server(lab, program="many_server.py", port=PORT)
    rate, active = MODES[mode]
    with lab.client("many_client.py", SERVICE, PORT, count, rate, active or count) as client:
        assert client.line() == "ready"
        row = way.move(lab, pid, PORT)
        seen = client.finish()
    if seen["errors"]:
        raise RuntimeError(f"{way.name}, {count} {mode}: {seen}")
    return {**row, "stall_ms": seen["worst_ms"], "p99_ms": seen["p99_ms"]}


def main() -> None:
    numbers = [int(one) for one in sys.argv[1:]]
    rounds, counts = (numbers or [ROUNDS])[0], numbers[1:] or COUNTS
    lab = Lab()
    table = Table(rounds)
    for count in counts:
        for mode in MODES:
            table.case(f"{count} {mode}", WAYS, functools.partial(once, lab, count, mode))
    lab.clear()
    table.write("connections")


if __name__ == "__main__":
    main()
