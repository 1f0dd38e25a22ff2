"""The report for a terminal: plain text, no wider than it must be."""

from __future__ import annotations

from typing import Any

from orchestrator.report import count, plain, size
from orchestrator.reporting.model import UNFINISHED
from orchestrator.reporting.page import milliseconds

Json = dict[str, Any]
_SLOWEST = 10
_BAR = 40  # characters of the timeline


def lines(report: Json) -> list[str]:
    """What is printed, line by line; nothing in it drives the terminal."""
    return [plain(line) for line in (*_head(report), *_timeline(report), *_streams(report),
                                     *_notes(report))]  # fmt: skip


def _head(report: Json) -> list[str]:
    name = report["comm"] or "the process"
    made = [
        f"{report['id']}: {report['outcome']}{' by recovery' if report['recovered'] else ''}",
        f"  {name}, PID {report['pid']}, from {report['source']} to {report['destination']}, "
        f"begun {report['begun']}",
    ]
    if report["command"]:
        made.append(f"  {report['command'][:200]}")
    if report["outcome"] == UNFINISHED:
        made.append(f"  It never came to its end here: `migrate recover {report['id']}`")
    if failure := report["failure"]:
        where = f" (in the phase {failure['phase'].replace('_', ' ')})" if failure["phase"] else ""
        made += [f"  error: {failure['message']}{where}", f"  hint:  {failure['hint']}"]
    if report["blackout_ms"]:
        made.append(
            f"  blackout  {milliseconds(report['blackout_ms'])} "
            f"(± {report['clock_error_ms']:.2f} ms between the clocks)"
        )
    if report["undone_ms"]:
        made.append(f"  held up   {milliseconds(report['undone_ms'])}, until it was undone")
    if stall := report["stall"]:
        silent = f"; {stall['silent']} have not answered" if stall["silent"] else ""
        made.append(
            f"  stall     {milliseconds(stall['least_ms'])} / {milliseconds(stall['median_ms'])} / "
            f"{milliseconds(stall['most_ms'])} (least, median, most of "
            f"{count(stall['known'], 'peer')}){silent}"
        )
    moved = report["bytes"]
    if "memory" in moved:
        rounds = f" in {count(len(report['rounds']), 'round')}" if report["rounds"] else ""
        synced = f", {size(moved['sync'])} for files" if moved["sync"] else ""
        made.append(
            f"  moved     {size(moved['memory'])} of memory{rounds}, {size(moved['streams'])} in "
            f"queues{synced}; {count(report['replayed_packets'], 'packet')} replayed"
        )
    return made


def _timeline(report: Json) -> list[str]:
    spans = report["timeline"] or report["heard"]
    if not spans:
        return []
    begin = min(one["start_ms"] for one in spans)
    whole = max(max(one["start_ms"] + one["ms"] for one in spans) - begin, 0.001)
    said = "from the lock" if report["timeline"] else "as heard here"
    made = [f"  {'phase':16} {'begun':>10} {'took':>10}  ({said})"]
    for role in ("source", "destination"):
        mine = [one for one in spans if one["role"] == role]
        made += [f"  {report[role]} ({role})"] if mine else []
        for one in sorted(mine, key=lambda one: one["start_ms"]):
            at = round((one["start_ms"] - begin) / whole * (_BAR - 1))
            long = max(round(one["ms"] / whole * _BAR), 1)
            made.append(
                f"    {one['phase'].replace('_', ' '):14} {one['start_ms']:7.1f} ms "
                f"{one['ms']:7.1f} ms  {' ' * at}{'#' * min(long, _BAR - at)}"
            )
    return made


def _streams(report: Json) -> list[str]:
    streams = report["streams"]
    if not streams:
        return []
    made = [f"  {'peer':28} {'sent':>9} {'unsent':>9} {'received':>9} {'woken':>10} {'stall':>10}"]
    for one in streams[:_SLOWEST]:
        made.append(
            f"  {one['remote']:28} {one['sent']:9} {one['unsent']:9} {one['receive_queue']:9} "
            f"{milliseconds(one['wake_ms']):>10} {milliseconds(one['stall_ms']):>10}"
        )
    if (left := len(streams) - _SLOWEST) > 0:
        made.append(f"  and {left} more, that felt less (--json has them)")
    return made


def _notes(report: Json) -> list[str]:
    return [f"  after {milliseconds(one['at_ms'])}: {one['text']}" for one in report["notes"]]
