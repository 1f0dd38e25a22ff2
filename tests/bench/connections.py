"""Many connections: what a move costs with 1 to 10,000 of them, beside the reference.

`python -m tests.bench.connections [ROUNDS [COUNT ...]]` prints a table and writes
results/connections.json. A server that uses epoll has the connections. Idle: one of them is asked
every millisecond, the others rest. Busy: they are asked in turn, 2,000 times a second in all. Each
is asked once before the move and once after it, and every byte is compared. The p99 stall is that
of the worst answer of each connection that was asked meanwhile. CPU seconds are those of all that
runs on a host from the beginning to the end, the server included; a total of ours has the check.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

from tests.bench import reference
from tests.bench.usage import Usage
from tests.support.lab import HOSTS, ROOT, SERVICE, Lab
from tests.support.workloads import start_server

RESULTS = ROOT / "results"
COUNTS = (1, 100, 1_000, 10_000)
ROUNDS = 5
PORT = 7000
MODES = {"idle": (1000, 1), "busy": (2000, 0)}  # requests a second, connections asked (0: all)
COLUMNS = {
    "blackout_ms": "blackout ms",
    "stall_ms": "stall ms",
    "p99_ms": "p99 ms",
    "total_ms": "total ms",
    "bytes": "bytes",
    "src_cpu_s": "src CPU s",
    "dst_cpu_s": "dst CPU s",
    "src_peak_mib": "src MiB",
    "dst_peak_mib": "dst MiB",
}
_MIB = 1 << 20


def once(lab: Lab, who: str, count: int, mode: str) -> dict[str, float]:
    lab.clear()
    pid = start_server(lab, program="many_server.py", port=PORT)
    rate, active = MODES[mode]
    with lab.client("many_client.py", SERVICE, PORT, count, rate, active or count) as client:
        assert client.line() == "ready"
        row = WHO[who](lab, pid)
        seen = client.finish()
    if seen["errors"]:
        raise RuntimeError(f"{who}, {count} {mode}: {seen}")
    return {**row, "stall_ms": seen["worst_ms"], "p99_ms": seen["p99_ms"]}


def ours(lab: Lab, pid: int) -> dict[str, float]:
    with Usage(HOSTS) as usage:
        migration = lab.migrate("src", "dst", pid)
    if migration.status:
        raise RuntimeError(f"{migration.result} {migration.stderr}")
    return {
        "blackout_ms": migration.result["blackout_ms"],
        "total_ms": (migration.ended - migration.started) * 1000,
        "bytes": sum(migration.result["bytes"].values()),
        **cost(usage),
    }


def theirs(lab: Lab, pid: int) -> dict[str, float]:
    device = lab.device("src")
    shells = [reference.Shell(host) for host in HOSTS]
    try:
        with Usage(HOSTS) as usage:
            begin = time.monotonic()
            blackout, size = reference.move(*shells, pid, device, PORT)
            total = (time.monotonic() - begin) * 1000
    finally:
        for shell in shells:
            shell.close()
    return {"blackout_ms": blackout, "total_ms": total, "bytes": size, **cost(usage)}


def cost(usage: Usage) -> dict[str, float]:
    found = {}
    for host in HOSTS:
        found[f"{host}_cpu_s"] = usage.of(host).cpu_seconds
        found[f"{host}_peak_mib"] = usage.of(host).peak_bytes / _MIB
    return found


WHO = {"ours": ours, "reference": theirs}


def summarized(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    summary = {}
    for column in COLUMNS:
        values = sorted(row[column] for row in rows)
        summary[column] = {
            "min": values[0],
            "median": statistics.median(values),
            "max": values[-1],
        }
    return summary


def main() -> None:
    numbers = [int(one) for one in sys.argv[1:]]
    rounds, counts = (numbers or [ROUNDS])[0], numbers[1:] or COUNTS
    lab = Lab()
    cases = [(count, mode) for count in counts for mode in MODES]
    rows: dict[str, list[dict[str, float]]] = {}
    print(f"{'medians':24}" + "".join(f"{name:>13}" for name in COLUMNS.values()))
    summary: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for count, mode in cases:
        for _ in range(rounds):
            for who in WHO:
                rows.setdefault(f"{who} {count} {mode}", []).append(once(lab, who, count, mode))
        for who in WHO:
            name = f"{who} {count} {mode}"
            summary[name] = summarized(rows[name])
            medians = (summary[name][column]["median"] for column in COLUMNS)
            cells = (f"{one:13,.0f}" if one >= 1000 else f"{one:13.1f}" for one in medians)
            print(f"{name:24}" + "".join(cells), flush=True)
        blackouts = [summary[f"{who} {count} {mode}"]["blackout_ms"] for who in WHO]
        ratios[f"{count} {mode}"] = ratio = blackouts[0]["median"] / blackouts[1]["median"]
        ranges = (f"{one['min']:,.0f} to {one['max']:,.0f}" for one in blackouts)
        print(f"  blackout, ours to reference: {ratio:.2f} ({' and '.join(ranges)} ms)", flush=True)
    lab.clear()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "connections.json").write_text(
        json.dumps({"summary": summary, "ratios": ratios, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
