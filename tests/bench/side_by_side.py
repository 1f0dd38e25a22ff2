"""One case moved by us and by the reference in turn: the columns, the table, the medians, the JSON.

CPU seconds are those of all that runs on a host from the beginning to the end, the server included;
a total of ours has the check, one of the reference begins when its connections are open.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.reference import Reference
from tests.bench.usage import Usage
from tests.support.lab import HOSTS, ROOT, Lab

RESULTS = ROOT / "results"
OURS, REFERENCE = "ours", "reference"
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
_PATIENCE = 300.0  # seconds for one of ours

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Way:
    """Who moves it; `options` are of our command, None: the reference."""

    name: str
    options: tuple[str, ...] | None = ()

    def move(self, lab: Lab, pid: int, port: int) -> Row:
        """What it cost, without what the clients saw. Raises `RuntimeError` where it failed."""
        return _theirs(lab, pid, port) if self.options is None else _ours(lab, pid, self.options)


WAYS = (Way(OURS), Way(REFERENCE, None))


def _ours(lab: Lab, pid: int, options: Sequence[str]) -> Row:
    with Usage(HOSTS) as usage:
        begin = time.monotonic()
        process = lab.start_migrate("src", "dst", pid, *options)
        migration = lab.end_migrate(process, _PATIENCE)
        total = (time.monotonic() - begin) * 1000
    if migration.status:
        raise RuntimeError(f"{migration.result} {migration.stderr}")
    return {
        "blackout_ms": migration.result["blackout_ms"],
        "total_ms": total,
        "bytes": sum(migration.result["bytes"].values()),
        **_cost(usage),
    }


def _theirs(lab: Lab, pid: int, port: int) -> Row:
    device = lab.device("src")
    with Reference() as reference, Usage(HOSTS) as usage:
        begin = time.monotonic()
        blackout, size = reference.move(pid, device, port)
        total = (time.monotonic() - begin) * 1000
    return {"blackout_ms": blackout, "total_ms": total, "bytes": size, **_cost(usage)}


def _cost(usage: Usage) -> Row:
    found = {}
    for host in HOSTS:
        found[f"{host}_cpu_s"] = usage.of(host).cpu_seconds
        found[f"{host}_peak_mib"] = usage.of(host).peak_bytes / _MIB
    return found


class Table:
    """Prints a line of medians as each case ends, and keeps it all for a file of JSON."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._rows: dict[str, list[Row]] = {}
        self._summary: dict[str, Any] = {}
        self._ratios: dict[str, Any] = {}
        print(f"{'medians':32}" + "".join(f"{name:>13}" for name in COLUMNS.values()), flush=True)

    def case(self, name: str, ways: Sequence[Way], once: Callable[[Way], Row]) -> None:
        """Measure a case, the ways in turn; those of ours are set beside the reference."""
        for _ in range(self._rounds):
            for way in ways:
                self._rows.setdefault(f"{way.name}, {name}", []).append(once(way))
        for way in ways:
            known = f"{way.name}, {name}"
            self._summary[known] = summary = summarized(self._rows[known])
            medians = (summary[column]["median"] for column in COLUMNS)
            cells = (f"{one:13,.0f}" if one >= 1000 else f"{one:13.1f}" for one in medians)
            print(f"{known:32}" + "".join(cells), flush=True)
        theirs = self._summary.get(f"{REFERENCE}, {name}")
        for way in ways:
            ours = self._summary[f"{way.name}, {name}"]
            if theirs is None or ours is theirs:
                continue
            ratios = {
                column: ours[column]["median"] / theirs[column]["median"]
                for column in ("blackout_ms", "total_ms")
            }
            self._ratios[f"{way.name}, {name}"] = ratios
            ranges = " and ".join(
                f"{one['blackout_ms']['min']:,.0f} to {one['blackout_ms']['max']:,.0f}"
                for one in (ours, theirs)
            )
            print(
                f"  {way.name} to reference: blackout {ratios['blackout_ms']:.2f} "
                f"({ranges} ms), total {ratios['total_ms']:.2f}",
                flush=True,
            )

    def write(self, name: str) -> None:
        """results/NAME.json"""
        RESULTS.mkdir(exist_ok=True)
        kept = {"summary": self._summary, "ratios": self._ratios, "rows": self._rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1))


def summarized(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Least, median and most of each column."""
    found = {}
    for column in COLUMNS:
        values = sorted(row[column] for row in rows)
        found[column] = {"min": values[0], "median": statistics.median(values), "max": values[-1]}
    return found
