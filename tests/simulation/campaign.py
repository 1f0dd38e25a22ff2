"""Many schedules, over all cores, until one fails."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.faults import Fault, choose
from tests.simulation.mutants import MUTANTS
from tests.simulation.schedule import Failure, minimised, run

_CHUNK = 500


@dataclass(slots=True)
class Outcome:
    """What many schedules came to."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    cover: Counter[Any] = field(default_factory=Counter)
    failure: Failure | None = None

    @property
    def rate(self) -> float:
        """Schedules per second."""
        return self.schedules / self.seconds if self.seconds else 0.0

    def add(self, other: Outcome) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.cover.update(other.cover)
        if other.failure is not None:
            if self.failure is None or other.failure.seed < self.failure.seed:
                self.failure = other.failure


def some(
    first: int,
    count: int,
    mutant: str | None = None,
    schedule: Callable[[int], list[Fault]] | None = None,
) -> Outcome:
    """These seeds, in this process, up to the first that fails."""
    schedule = schedule or (MUTANTS[mutant].schedule if mutant else choose)
    outcome = Outcome()
    with MUTANTS[mutant].in_place() if mutant else _as_it_is() as alter:
        for seed in range(first, first + count):
            outcome.schedules += 1
            try:
                world = run(seed, schedule(seed), alter=alter)
            except Exception:
                outcome.failure = minimised(seed, schedule(seed), alter)
                break
            outcome.steps += world.steps
            outcome.cover.update(world.cover)
    return outcome


def many(
    first: int, count: int, workers: int | None = None, mutant: str | None = None
) -> Iterator[Outcome]:
    """These seeds, on all cores: what is known so far, again and again, at last of them all.

    Ends early where one has failed.
    """
    total = Outcome()
    begin = time.perf_counter()
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        end = first + count
        parts = [
            pool.submit(some, seed, min(_CHUNK, end - seed), mutant)
            for seed in range(first, end, _CHUNK)
        ]
        for part in as_completed(parts):
            total.add(part.result())
            total.seconds = time.perf_counter() - begin
            yield total
            if total.failure is not None:
                pool.shutdown(cancel_futures=True)
                return


class _as_it_is:
    """No mutant."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
