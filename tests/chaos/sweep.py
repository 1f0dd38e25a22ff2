"""`make chaos`: every fault point, every action, in the lab, under clients that count and check.

    python -m tests.chaos.sweep [--json FILE] [--only TEXT]... [--list]

Prints the table of outcomes and each cell that is not as it has to be; exits 1 where there is one.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from agent.fault import POINTS, SWEPT
from tests.chaos.cells import Cell, Sweep, faults
from tests.support.lab import Lab

_SHORT = {"migrated": "moved", "rolled-back": "back", "refused": "refused", "in-doubt": "doubt"}


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write all of it there.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only faults that contain TEXT.")
@click.option("--list", "only_list", is_flag=True, help="Only name the cells.")
def main(target: Path | None, only: tuple[str, ...], only_list: bool) -> None:
    """Sweep the faults."""
    wanted = [one for one in faults() if not only or any(text in one for text in only)]
    if only_list:
        print("\n".join(wanted))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    done: list[Cell] = []
    for cell in Sweep(Lab()).cells(wanted):
        done.append(cell)
        mark = "ok " if cell.ok else "BAD"
        console.print(
            f"{len(done):3}/{len(wanted)} {mark} {cell.fault:34} {cell.outcome:12} "
            f"at {cell.at:4} by {cell.by:8} stall {cell.stall_s:6.2f} s, "
            f"settled {cell.settled_s:6.2f} s {'; '.join(cell.wrong)}",
            highlight=False,
        )
        if target:
            write(target, done)
    console.print(table(done))
    console.print(summary(done))
    sys.exit(any(not cell.ok for cell in done))


def write(target: Path, done: list[Cell]) -> None:
    """All cells so far, as JSON."""
    cells = [cell.to_json() for cell in done]
    target.write_text(json.dumps({"cells": cells, "bad": sum(not c.ok for c in done)}, indent=1))


def table(done: list[Cell]) -> Table:
    """Points down, actions across: outcome, and the longest wait of a client in seconds."""
    found = {cell.fault: cell for cell in done}
    drawn = Table("point", *SWEPT, title="outcome, and the service's longest silence in seconds")
    for point in POINTS:
        name = f"{point.name}@{point.role}"
        row = [_entry(found.get(f"{name}={action}")) for action in SWEPT]
        if any(row):
            drawn.add_row(name, *row)
    return drawn


def _entry(cell: Cell | None) -> str:
    if cell is None:
        return ""
    outcome = _SHORT.get(cell.outcome, "killed")
    by = "*" if cell.by == "recover" else ""
    return f"{'' if cell.ok else 'BAD '}{outcome}{by} {cell.stall_s:.1f}"


def summary(done: list[Cell]) -> str:
    """The sums that have to be zero, and the times."""
    stalls = sorted(cell.stall_s for cell in done)
    settled = sorted(cell.settled_s for cell in done)
    bad = [cell.fault for cell in done if not cell.ok]
    return (
        f"{len(done)} cells: {sum(cell.live == 1 for cell in done)} with one live copy, "
        f"{sum(len(cell.errors) for cell in done)} client errors, "
        f"{sum(cell.lost for cell in done)} bytes lost, "
        f"{sum(len(cell.left) for cell in done)} leftovers, "
        f"{sum(cell.by == 'recover' for cell in done)} ended by `migrate recover` (*)\n"
        f"back in service after {statistics.median(stalls):.2f} s (median), {stalls[-1]:.2f} s "
        f"(most); all settled after {statistics.median(settled):.2f} s, {settled[-1]:.2f} s\n"
        + ("every cell is as it has to be" if not bad else f"NOT as it has to be: {', '.join(bad)}")
    )


if __name__ == "__main__":
    main()
