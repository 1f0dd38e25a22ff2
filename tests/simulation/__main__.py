"""Run schedules: `python -m tests.simulation --schedules 1000000`, or one: `--seed N`."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.simulation.campaign import many
from tests.simulation.faults import choose
from tests.simulation.mutants import MUTANTS
from tests.simulation.schedule import run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat this schedule, and print what happens")
    parser.add_argument("--schedules", type=int, default=100_000, metavar="N")
    parser.add_argument("--first", type=int, help="seed of the first; a random one if not given")
    parser.add_argument("--mutant", choices=MUTANTS, help="break the protocol so")
    parser.add_argument("--cover", action="store_true", help="print how often everything was hit")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _repeat(options.seed, options.mutant)
    first = secrets.randbelow(1 << 40) if options.first is None else options.first
    broken = f" of the mutant {options.mutant}" if options.mutant else ""
    print(f"{options.schedules:,} schedules{broken}, the first with seed {first}", flush=True)
    shown = 0
    for total in many(first, options.schedules, mutant=options.mutant):
        if total.schedules - shown >= 50_000:
            shown = total.schedules
            print(f"{shown:>12,}  {total.rate:,.0f}/s", flush=True)
    if total.failure is not None:
        print(total.failure)
        if options.mutant:
            print(f"  with --mutant {options.mutant}")
        print("\n".join(total.failure.trace))
        return 1
    if options.cover:
        for what, times in sorted(total.cover.items(), key=str):
            print(f"{times:>10,}  {' '.join(map(str, what))}")
    print(
        f"{total.schedules:,} schedules, {total.steps:,} steps in {total.seconds:.0f} s "
        f"({total.rate:,.0f}/s): the invariants held after every step"
    )
    return 0


def _repeat(seed: int, mutant: str | None) -> int:
    trace: list[str] = []
    faults = (MUTANTS[mutant].schedule if mutant else choose)(seed)
    for fault in faults:
        print(f"  {fault}")
    status = 0
    try:
        if mutant is None:
            run(seed, faults, trace)
        else:
            with MUTANTS[mutant].in_place() as alter:
                run(seed, faults, trace, alter)
        trace.append("all held")
    except Exception as error:
        trace.append(f"{type(error).__name__}: {error}")
        status = 1
    print("\n".join(trace))
    return status


if __name__ == "__main__":
    sys.exit(main())
