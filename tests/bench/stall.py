"""The worst stall of a request/response client over the blackout, with replay and without.

`python -m tests.bench.stall [ROUNDS]` prints a table and writes results/stall.json. One client
asks again as soon as it has its answer; the other one's request is sent within the blackout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.bench.blackout import RESULTS, spread
from tests.support.lab import SERVICE, Lab
from tests.support.workloads import start_server

WAYS = {"with replay": (), "without replay": ("--test-no-replay",)}


def once(lab: Lab, *options: str) -> dict[str, Any]:
    lab.clear()
    pid = start_server(lab)
    with (
        lab.client("request_client.py", SERVICE, 7000, 0) as client,
        lab.client("late_client.py", SERVICE, 7000) as late,
    ):
        client.line()
        late.line()
        migration = lab.migrate("src", "dst", pid, *options)
        seen, seen_late = client.finish(), late.finish()
    if migration.status != 0 or seen["errors"] or seen_late["errors"]:
        raise RuntimeError(f"{migration.result} {seen} {seen_late}")
    blackout = migration.result["blackout_ms"]
    return {
        "blackout_ms": blackout,
        "stall over blackout": seen["worst_ms"] - blackout,
        "wait of a request sent in it": seen_late["worst_ms"],
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    lab = Lab()
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, options in WAYS.items():
            rows[way].append(once(lab, *options))
    lab.clear()
    summary = {f"{way}: {key}": spread(rows[way], key) for way in rows for key in rows[way][0]}
    print(f"{'':40}{'min':>9}{'median':>9}{'p90':>9}{'max':>9}")
    for name, values in summary.items():
        print(f"{name:40}" + "".join(f"{values[key]:9.1f}" for key in values))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stall.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
