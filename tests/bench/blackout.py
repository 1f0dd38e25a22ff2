"""The blackout of a small Redis with one client: ours and the reference, side by side in one run.

`python -m tests.bench.blackout [ROUNDS]` prints a table and writes results/blackout.json.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from tests.bench.reference import Reference
from tests.support.lab import ROOT, SERVICE, Lab
from tests.support.workloads import start_redis

RESULTS = ROOT / "results"


def ours(lab: Lab) -> dict[str, Any]:
    lab.clear()
    pid = start_redis(lab)
    with lab.client("redis_counter.py", SERVICE, 6379, 1, 1, 0.0005) as client:
        client.line()
        migration = lab.migrate("src", "dst", pid)
        seen = client.finish()
    if migration.status != 0 or seen["errors"]:
        raise RuntimeError(f"{migration.result} {seen}")
    blackout = migration.result["blackout_ms"]
    stall = seen["worst_stall_ms"]
    phases = migration.result["phases_ms"]
    return {"blackout_ms": blackout, "stall_ms": stall, "over_ms": stall - blackout} | phases


def theirs(lab: Lab) -> dict[str, Any]:
    lab.clear()
    pid = start_redis(lab)
    device = lab.device("src")
    with (
        Reference() as reference,
        lab.client("redis_counter.py", SERVICE, 6379, 1, 1, 0.0005) as client,
    ):
        client.line()
        blackout, _ = reference.move(pid, device, 6379)
        seen = client.finish()
    return {"blackout_ms": blackout, "stall_ms": seen["worst_stall_ms"]}


def spread(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    values = sorted(row[key] for row in rows)
    return {
        "min": values[0],
        "median": statistics.median(values),
        "p90": values[min(len(values) - 1, int(len(values) * 0.9))],
        "max": values[-1],
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    lab = Lab()
    rows: dict[str, list[dict[str, Any]]] = {"ours": [], "reference": []}
    for number in range(rounds):
        rows["ours"].append(ours(lab))
        rows["reference"].append(theirs(lab))
        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    summary = {f"{who} {key}": spread(rows[who], key) for who in rows for key in rows[who][0]}
    ratio = summary["ours blackout_ms"]["median"] / summary["reference blackout_ms"]["median"]
    print(f"{'':32}{'min':>9}{'median':>9}{'p90':>9}{'max':>9}")
    for name, values in summary.items():
        print(f"{name:32}" + "".join(f"{values[key]:9.1f}" for key in values))
    print(f"blackout, ours to reference (medians): {ratio:.2f}")
    lab.clear()
    RESULTS.mkdir(exist_ok=True)
    path = Path(RESULTS / "blackout.json")
    path.write_text(json.dumps({"summary": summary, "ratio": ratio, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
