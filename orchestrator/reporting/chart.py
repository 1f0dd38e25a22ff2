"""Where things are drawn: the timeline of both hosts, and the histogram of the stalls. Pure.

Each phase has a row of its own with its name beside the plot, so no two labels can meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

WIDTH = 960.0
GUTTER = 168.0  # names of phases
RIGHT = 16.0
ROW = 22.0
TOP = 34.0  # above the first row: the label of the blackout
HEAD = 26.0  # a host's name
AXIS = 44.0  # its numbers, and what they count from
_LABEL = 66.0  # room for "1234.5 ms" beside a bar
_THINNEST = 2.0
_MUCH = 3.0  # times the blackout: more has a drawing of its own
_TICKS = 8
_BINS = 48
KINDS = {
    "dump_streams": "streams", "restore_streams": "streams", "replay": "streams",
    "freeze": "process", "dump_process": "process", "ship": "process", "restore_process": "process",
    "pre_copy": "process", "post_copy": "process", "fill": "process",
    "sync": "files", "sync_last": "files",
    "roll_back": "undo",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Row:
    phase: str
    kind: str
    y: float
    bars: list[Bar]
    ms: float  # of all of them
    before: bool  # it began before what is drawn
    label_x: float
    anchor: str  # of the label: "start" or "end"


@dataclass(frozen=True, slots=True)
class Host:
    role: str
    y: float
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    ms: float


@dataclass(slots=True)
class Timeline:
    """A drawing of what was done between two times."""

    height: float
    bottom: float  # of the plot
    hosts: list[Host]
    ticks: list[Tick]
    blackout: Bar | None
    label_x: float  # of the blackout
    anchor: str
    peers: Json | None = None  # when they were heard again
    clipped: bool = False  # something began before, or ended after
    width: float = field(default=WIDTH)


@dataclass(frozen=True, slots=True)
class Scale:
    """Milliseconds to the drawing's units."""

    begin: float
    end: float

    def x(self, ms: float) -> float:
        share = (ms - self.begin) / (self.end - self.begin)
        return GUTTER + min(max(share, 0.0), 1.0) * (WIDTH - GUTTER - RIGHT)


def window(blackout: float | None, wakes: Sequence[float], spans: list[Json]) -> Scale | None:
    """The blackout, what leads to it and what follows; None where nothing was timed."""
    if not spans:
        return None
    everything = whole(spans)
    if not blackout:
        return everything
    last = max([blackout, *(one for one in wakes if one < _MUCH * blackout)]) + 0.12 * blackout
    near = Scale(-0.2 * blackout, last)
    if everything.end - everything.begin < _MUCH * (near.end - near.begin):  # then one will do
        return Scale(min(everything.begin, near.begin), max(everything.end, near.end))
    return near


def whole(spans: list[Json], wakes: Sequence[float] = ()) -> Scale:
    """All that was timed."""
    begin = min(one["start_ms"] for one in spans)
    end = max([*(one["start_ms"] + one["ms"] for one in spans), *wakes])
    margin = max((end - begin) * 0.03, 0.1)
    return Scale(begin - margin, end + margin)


def outside(spans: list[Json], blackout: float | None) -> list[Json]:
    """What was not done in the blackout alone."""
    end = blackout or 0.0
    return [one for one in spans if one["start_ms"] < 0 or one["start_ms"] + one["ms"] > end]


def timeline(
    spans: list[Json], scale: Scale, blackout: float | None, wakes: Sequence[float] = ()
) -> Timeline:
    """`spans`: {"role", "phase", "start_ms", "ms"}; `wakes`: when each peer was heard again."""
    y = TOP
    hosts = []
    clipped = False
    for role in dict.fromkeys(one["role"] for one in spans):
        seen: dict[str, list[Json]] = {}
        for one in sorted(spans, key=lambda one: one["start_ms"]):
            if one["role"] != role:
                continue
            if one["start_ms"] > scale.end or one["start_ms"] + one["ms"] < scale.begin:
                clipped = True
            else:
                seen.setdefault(one["phase"], []).append(one)
                clipped |= one["start_ms"] < scale.begin or one["start_ms"] + one["ms"] > scale.end
        host = Host(role, y, [])
        y += HEAD
        for phase, parts in seen.items():
            host.rows.append(_row(phase, parts, scale, y))
            y += ROW
        hosts += [host] if host.rows else []
        y = y + 8 if host.rows else host.y
    peers = None
    if wakes:
        peers = _peers(sorted(wakes), scale, y)
        y += HEAD + ROW + 4
    bar, label, anchor = None, 0.0, "middle"
    if blackout:
        bar = Bar(scale.x(0), max(scale.x(blackout) - scale.x(0), _THINNEST))
        label = bar.x + bar.width / 2
        if label < GUTTER + 80:
            label, anchor = bar.x, "start"
        elif label > WIDTH - RIGHT - 80:
            label, anchor = bar.x + bar.width, "end"
    ticks = [Tick(scale.x(ms), ms) for ms in _ticks(scale.begin, scale.end, _TICKS)]
    return Timeline(y + AXIS, y, hosts, ticks, bar, label, anchor, peers, clipped)


def _row(phase: str, parts: list[Json], scale: Scale, y: float) -> Row:
    bars: list[Bar] = []
    for one in parts:
        x = scale.x(one["start_ms"])
        end = max(scale.x(one["start_ms"] + one["ms"]), x + _THINNEST)
        if bars and x - (bars[-1].x + bars[-1].width) < 0.5:  # thousands may be of one phase
            bars[-1] = Bar(bars[-1].x, max(end, bars[-1].x + bars[-1].width) - bars[-1].x)
        else:
            bars.append(Bar(x, end - x))
    right = bars[-1].x + bars[-1].width
    label, anchor = right + 6, "start"
    if right + _LABEL > WIDTH - RIGHT:
        label, anchor = bars[0].x - 6, "end"
        if bars[0].x - _LABEL < GUTTER:  # from one end to the other: on the bar
            label, anchor = right - 6, "inside"
    before = parts[0]["start_ms"] < scale.begin
    took = sum(one["ms"] for one in parts)
    return Row(phase, KINDS.get(phase, "protocol"), y, bars, took, before, label, anchor)


def _peers(wakes: list[float], scale: Scale, y: float) -> Json:
    """One mark where many would be in one place; `later`: how many are beyond what is drawn."""
    shown = [one for one in wakes if one <= scale.end]
    marks = sorted({round(scale.x(one), 0) for one in shown}) or [WIDTH - RIGHT]
    label, anchor = marks[-1] + 6, "start"
    if label + 150 > WIDTH - RIGHT:
        label, anchor = marks[0] - 6, "end"
    if anchor == "end" and marks[0] - 250 < GUTTER:  # marks all along
        label, anchor = WIDTH - RIGHT, "above"
    return {
        "y": y, "marks": marks if shown else [], "label_x": label, "anchor": anchor,
        "later": len(wakes) - len(shown), "first_ms": wakes[0],
        "last_ms": shown[-1] if shown else wakes[-1], "none": not shown,
    }  # fmt: skip


def _ticks(begin: float, end: float, most: int) -> list[float]:
    """Round numbers between two."""
    raw = (end - begin) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= raw)
    first = math.ceil(begin / step)
    return [number * step for number in range(first, math.floor(end / step) + 1)]


@dataclass(frozen=True, slots=True)
class Bin:
    x: float
    width: float
    y: float
    height: float
    count: int
    from_ms: float
    to_ms: float  # inf: and all that took longer


@dataclass(frozen=True, slots=True)
class Histogram:
    bins: list[Bin]
    ticks: list[Tick]
    counts: list[tuple[float, int]]  # y and number of the lines across
    median_x: float
    width: float
    height: float
    bottom: float


def histogram(stalls: list[float]) -> Histogram:
    """How many peers have felt which stall; what is far off is in one last bar."""
    left, top, height = 56.0, 24.0, 150.0
    found = sorted(stalls)
    low, high, edge = found[0], found[-1], found[math.ceil(0.99 * len(found)) - 1]
    tail = high - low > 3 * max(edge - low, 1.0)
    if tail:
        high = edge + 0.1 * (edge - low)
    high = max(high, low + 1.0)
    number = max(min(_BINS, math.ceil(2 * len(found) ** 0.5)), 10)
    step = (high - low) / number
    counts = [0] * number
    over = 0
    for one in found:
        at = int((one - low) / step)
        if at < number or one <= high:
            counts[min(at, number - 1)] += 1
        else:
            over += 1
    room = WIDTH - left - RIGHT - (72 if over else 0)
    most = max(*counts, over)
    bottom = top + height

    def bin_at(at: float, width: float, count: int, begin: float, end: float) -> Bin:
        tall = count / most * height
        tall = max(tall, 1.5) if count else 0.0
        return Bin(at, width, bottom - tall, tall, count, begin, end)

    wide = room / number
    bins = [
        bin_at(left + at * wide + 0.5, wide - 1, count, low + at * step, low + (at + 1) * step)
        for at, count in enumerate(counts)
    ]
    if over:
        bins.append(bin_at(WIDTH - RIGHT - 44, 36, over, high, math.inf))
    ticks = [Tick(left + (ms - low) / (high - low) * room, ms) for ms in _ticks(low, high, _TICKS)]
    lines = [
        (bottom - one / most * height, round(one))
        for one in _ticks(0, most, 4)
        if one and one == round(one)
    ]
    median = found[len(found) // 2]
    return Histogram(bins, ticks, lines, left + (median - low) / (high - low) * room, WIDTH,
                     bottom + AXIS, bottom)  # fmt: skip
