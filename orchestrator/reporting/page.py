"""The report as one HTML page that needs nothing else: no script, no file, no network."""

from __future__ import annotations

import functools
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from agent import __version__
from agent.errors import EXIT_REFUSED, AgentError
from orchestrator.migration.result import IN_DOUBT, MIGRATED, REFUSED, ROLLED_BACK
from orchestrator.report import count, plain, size
from orchestrator.reporting import chart
from orchestrator.reporting.model import UNFINISHED

Json = dict[str, Any]
FIRST = 25  # streams that are shown at once
MOST = 200  # streams that are all there; of more only the slowest

_MEMORY = {"stop": "all of it in the blackout", "pre-copy": "pre-copy", "post-copy": "post-copy"}
_TITLES = {
    MIGRATED: "Migrated",
    ROLLED_BACK: "Rolled back",
    REFUSED: "Refused",
    IN_DOUBT: "In doubt",
    UNFINISHED: "Never came to its end",
    "over": "Over",
}


class PageUnwritten(AgentError):
    code = "page-unwritten"
    template = "the report cannot be written to {path}: {detail}"
    hint_template = "Give --html a file in a directory that this user may write to."
    exit_status = EXIT_REFUSED


def html(report: Json) -> str:
    """The page of a report of `orchestrator.reporting.model`."""
    blackout, spans = report["blackout_ms"], report["timeline"]
    migrated = report["outcome"] == MIGRATED
    held = blackout or report["undone_ms"]
    wakes = [one["stall_ms"] for one in report["streams"] if migrated and one["stall_ms"]]
    near = chart.window(held, wakes, spans)
    zoomed = None if near is None else chart.timeline(spans, near, held, wakes)
    everything = None
    if zoomed is not None and zoomed.clipped:
        scale = chart.whole(spans, wakes)
        everything = chart.timeline(chart.outside(spans, held), scale, held, wakes)
    heard = None
    if not spans and report["heard"]:
        heard = chart.timeline(report["heard"], chart.whole(report["heard"]), None)
    streams = report["streams"]
    shown = streams if len(streams) <= MOST else streams[:FIRST]
    return _environment().get_template("page.html.j2").render(
        report=report, title=_TITLES.get(report["outcome"], report["outcome"]), held=held,
        memory=_MEMORY.get(report["memory"]["mode"], report["memory"]["mode"]), migrated=migrated,
        zoomed=zoomed, everything=everything, heard=heard,
        hosts={"source": report["source"], "destination": report["destination"], "": "a host"},
        histogram=chart.histogram(wakes) if len(wakes) > FIRST else None,
        first=shown[:FIRST], more=shown[FIRST:], left_out=len(streams) - len(shown),
        slowest=max((one["stall_ms"] or 0.0 for one in streams), default=0.0), version=__version__,
        gutter=chart.GUTTER, right=chart.RIGHT, row=chart.ROW,
    )  # fmt: skip


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("orchestrator.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ms=milliseconds,
        size=size,
        count=count,
        words=_words,
        px=_px,
        axis=_axis,
        number=lambda value: f"{value:,}",
    )
    return made


def _shown(value: Any) -> Any:
    """What hosts and processes have named, without what turns or hides text; then it is escaped."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.2f} s" if value < 100_000 else f"{value / 1000:.0f} s"
    return f"{value:.1f} ms" if value >= 1 or not value else f"{value:.2f} ms"


def _axis(value: float) -> str:
    """A round number of milliseconds."""
    if math.isclose(value, 0, abs_tol=1e-9):
        return "0"
    return f"{value / 1000:g} s" if abs(value) >= 1000 else f"{value:g} ms"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _px(value: float) -> str:
    return f"{value:.1f}"
