"""Counts of what came of migrations and drains, as Prometheus reads them.

The totals are in the user's state directory (streamferry/metrics.json), so they add up over runs of
the command, whichever file each writes, and none that is emptied at a restart makes them begin
anew. Runs beside each other take turns (flock). `registry` is also for who serves them by HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator import atomic
from orchestrator.draining import outcome as drains
from orchestrator.migration import result as results
from orchestrator.migration.result import Json
from orchestrator.records import RecordDamaged, Records, is_open

BLACKOUT = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STALL = BLACKOUT
_BUCKETS = len(BLACKOUT) + 1
_LONGEST = 1e6  # seconds
OUTCOMES = (results.MIGRATED, results.ROLLED_BACK, results.REFUSED, results.IN_DOUBT)
DRAINS = (
    drains.DRAINED, drains.NOTHING, drains.INCOMPLETE, drains.REFUSED, drains.IN_DOUBT,
    drains.INTERRUPTED,
)  # fmt: skip
BYTES = ("memory", "streams", "files", "sync")
_PREFIX = "streamferry"


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Observed(_Shape):
    """A histogram: how many in each bucket, the last without a bound."""

    counts: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0] * _BUCKETS, min_length=_BUCKETS, max_length=_BUCKETS
    )
    sum: float = Field(0.0, ge=0, allow_inf_nan=False)

    def add(self, seconds: float, bounds: tuple[float, ...]) -> None:
        if 0 <= seconds < _LONGEST:  # else a host's clock is not to be gone by
            self.counts[sum(seconds > one for one in bounds)] += 1
            self.sum += seconds

    def cumulated(self, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
        names = [*map(str, bounds), "+Inf"]
        return [(name, float(sum(self.counts[: at + 1]))) for at, name in enumerate(names)]


class Totals(_Shape):
    """All that was counted here."""

    migrations: dict[str, int] = {}
    last: dict[str, float] = {}  # outcome -> when, in seconds since the epoch
    drains: dict[str, int] = {}
    blackout: Observed = Field(default_factory=Observed)
    stall: Observed = Field(default_factory=Observed)  # of connections
    silent: int = 0  # connections whose peer had not answered
    bytes: dict[str, int] = {}
    replayed: int = 0
    doubted: list[str] = []  # ids; whether they still are is in their records

    def take(self, result: Json) -> None:
        """Count one migration; `result` as it is printed."""
        outcome = result["outcome"]
        self.migrations[outcome] = self.migrations.get(outcome, 0) + 1
        self.last[outcome] = time.time()
        if outcome == results.IN_DOUBT and result["id"] not in self.doubted:
            self.doubted.append(result["id"])
        if "streams" not in result:  # only known from a recovery
            return
        moved = {**result["bytes"], "sync": result.get("sync_bytes", 0)}
        for kind in BYTES:
            self.bytes[kind] = self.bytes.get(kind, 0) + max(moved[kind], 0)
        if outcome != results.MIGRATED:
            return
        self.replayed += max(result["replayed_packets"], 0)
        self.blackout.add(result["blackout_ms"] / 1000, BLACKOUT)
        for stream in result["streams"]:
            if stream["wake_ms"] < 0:
                self.silent += 1
            else:
                self.stall.add((result["blackout_ms"] + stream["wake_ms"]) / 1000, STALL)


class Metrics:
    """Counts, and writes a file where one is wanted. What goes wrong is said, and stops nothing."""

    def __init__(
        self, file: str | None, state: Path | None = None, records: Records | None = None
    ) -> None:
        self._file = Path(file) if file is not None else None
        self._state = state or user_state_path(_PREFIX)
        self._records = records or Records()

    @property
    def _path(self) -> Path:
        return self._state / "metrics.json"

    def migration(self, result: Json) -> None:
        """Count one, by its result."""
        self._count(lambda totals: totals.take(result))

    def drain(self, result: Json) -> None:
        """Count one, by its result; a dry run is none."""
        outcome = result["outcome"]
        if not result["dry_run"]:
            self._count(lambda totals: _increment(totals.drains, outcome))

    def begin(self) -> None:
        """Write the file for who counts for long; what cannot be counted is said now, not then."""
        with self._saying("what migrates from now on is not counted"):
            self.totals()
            self.write()

    def write(self) -> None:
        """The file, in one step, for all to read; nothing where none is wanted."""
        if self._file is None:
            return
        from prometheus_client import generate_latest

        with self._saying(f"no metrics in {self._file}"):
            if (file := atomic.behind(self._file)) is None:  # it was one when this began
                raise OSError(errno.EINVAL, "it is no regular file any more")
            atomic.replace(file, generate_latest(self.registry()), 0o644)

    def registry(self) -> Any:
        """All metrics, each time they are asked for as they stand then."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.registry import Collector

        class Now(Collector):
            def collect(_self) -> Iterator[Any]:  # noqa: N805
                totals = self.totals()
                return families(totals, self._in_doubt(totals))

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Now())
        return registry

    def totals(self) -> Totals:
        """As they are on disk. Raises `OSError`, and `ValueError` where the file is damaged."""
        try:
            return Totals.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Totals()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"{self._path} cannot be gone by ({first}): move it away") from None

    def _count(self, change: Callable[[Totals], None]) -> None:
        with self._saying("it is not counted"):
            with self._alone():
                totals = self.totals()
                change(totals)
                totals.doubted = self._in_doubt(totals)
                atomic.replace(self._path, totals.model_dump_json().encode())
            self.write()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        atomic.make(self._state)
        fd = os.open(self._state / "metrics.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _in_doubt(self, totals: Totals) -> list[str]:
        """Those that are not recovered since."""
        found = []
        for one in totals.doubted:
            try:
                record = self._records.get(one)
            except RecordDamaged:  # nobody can say that it is over
                found.append(one)
            else:
                found += [one] if record is not None and is_open(record) else []
        return found

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        from orchestrator import report

        try:
            yield
        except OSError as error:
            report.say(f"migrate: {what}: {error.strerror or error}", sys.stderr)
        except ValueError as error:
            report.say(f"migrate: {what}: {error}", sys.stderr)


def families(totals: Totals, doubted: list[str]) -> Iterator[Any]:
    """The metrics, of `prometheus_client`."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    def counter(
        name: str, text: str, label: str, known: tuple[str, ...], of: dict[str, Any]
    ) -> Any:
        family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
        for one in dict.fromkeys((*known, *of)):
            family.add_metric([one], of.get(one, 0))
        return family

    def histogram(name: str, text: str, of: Observed, bounds: tuple[float, ...]) -> Any:
        return HistogramMetricFamily(
            f"{_PREFIX}_{name}", text, buckets=of.cumulated(bounds), sum_value=of.sum
        )

    yield counter("migrations", "Migrations that have come to their end, by outcome.",
                  "outcome", OUTCOMES, totals.migrations)  # fmt: skip
    yield counter("drains", "Drains that have come to their end, by outcome.",
                  "outcome", DRAINS, totals.drains)  # fmt: skip
    yield histogram("blackout_seconds", "From the lock at the source to the resume at the "
                    "destination, of what was migrated.", totals.blackout, BLACKOUT)  # fmt: skip
    yield histogram("stall_seconds", "What each connection's peer has felt: the blackout, and the "
                    "time until it was heard again.", totals.stall, STALL)  # fmt: skip
    yield CounterMetricFamily(f"{_PREFIX}_silent_connections", "Connections whose peer had not "
                              "answered when the migration ended.", totals.silent)  # fmt: skip
    yield counter("bytes", "Bytes sent from source to destination, by kind.",
                  "kind", BYTES, totals.bytes)  # fmt: skip
    yield CounterMetricFamily(f"{_PREFIX}_replayed_packets", "Packets of peers that arrived in the "
                              "blackout and were replayed.", totals.replayed)  # fmt: skip
    yield GaugeMetricFamily(f"{_PREFIX}_in_doubt", "Migrations that are in doubt now: `migrate "
                            "recover` ends them.", len(doubted))  # fmt: skip
    last = GaugeMetricFamily(f"{_PREFIX}_last_migration_timestamp_seconds", "When the last "
                             "migration of an outcome ended.", labels=["outcome"])  # fmt: skip
    for outcome in dict.fromkeys((*OUTCOMES, *totals.last)):
        last.add_metric([outcome], totals.last.get(outcome, 0))  # 0: none has
    yield last


def _increment(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
