"""What a person sees of a drain: a live table on a terminal, else a line for each change."""

from __future__ import annotations

import sys
from typing import Any

from orchestrator import log, report
from orchestrator.draining import outcome, states
from orchestrator.draining.journal import Item

Json = dict[str, Any]

_WORDS = {
    states.WAITING: "waiting",
    states.MOVING: "moving",
    states.CHECKING: "is it well?",
    states.RETURNING: "going back",
    states.MOVED: "moved",
    states.RETURNED: "moved back",
    states.UNWELL: "not well",
    states.FAILED: "rolled back",
    states.IN_DOUBT: "in doubt",
    states.LOST: "lost",
    states.IMMOVABLE: "cannot move",
    states.GONE: "gone",
}
_COLOURS = {
    states.MOVED: "green",
    states.MOVING: "cyan",
    states.CHECKING: "cyan",
    states.RETURNING: "yellow",
    states.RETURNED: "yellow",
    states.UNWELL: "red",
    states.FAILED: "red",
    states.IN_DOUBT: "red",
    states.LOST: "red",
    states.IMMOVABLE: "yellow",
}
_ENDS = {
    outcome.DRAINED: "is empty of what was meant",
    outcome.NOTHING: "has nothing to be moved",
    outcome.READY: "could be drained",
    outcome.INCOMPLETE: "is not empty",
    outcome.REFUSED: "was not drained",
    outcome.IN_DOUBT: "is in doubt",
    outcome.INTERRUPTED: "is not empty: interrupted",
}


class Silent:
    """For --json and --quiet: notes go to stderr."""

    def begin(self, node: str) -> None: ...
    def end(self) -> None: ...
    def changed(self, item: Item) -> None: ...
    def progress(self, item: Item, phase: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        if not log.takes_stderr():  # there it is already
            report.say(f"migrate: {report.plain(text)}", sys.stderr)


class Lines(Silent):
    """A line a change, where stdout is no terminal."""

    def begin(self, node: str) -> None:
        report.say(report.plain(f"Draining {node}"))

    def changed(self, item: Item) -> None:
        way = states.way(item.state, item.destination, item.moved)
        where = f" {way}" if way else ""
        said = f": {item.error['message']}" if item.error else ""
        report.say(report.plain(f"  {item.key}{where}  {_WORDS[item.state]}{said}"))

    def note(self, text: str) -> None:
        report.say(f"  {report.plain(text)}")


class Table(Silent):
    """A live table of the workloads."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._progress: dict[str, str] = {}
        self._node = ""
        self._live: Any = None

    def begin(self, node: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._node, self._items, self._progress = node, {}, {}
        self._live = Live(
            console=Console(), get_renderable=self._render, refresh_per_second=8, transient=True
        )
        self._live.start()

    def end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def changed(self, item: Item) -> None:
        self._items[item.key] = item
        self._progress.pop(item.key, None)

    def progress(self, item: Item, phase: str, done: int, total: int) -> None:
        share = f" {100 * done // total} %" if total else ""
        self._progress[item.key] = f"{phase.replace('_', ' ')}{share}"

    def note(self, text: str) -> None:
        line = report.plain(text)
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            report.say(line)

    def _render(self) -> Any:
        return table(self._node, list(self._items.values()), dict(self._progress))


def table(node: str, items: list[Item], progress: dict[str, str]) -> Any:
    """The workloads as they stand, for rich."""
    from rich.table import Table as RichTable
    from rich.text import Text

    over = sum(one.state in states.OVER for one in items)
    made = RichTable(title=f"Draining {report.plain(node)}: {over} of {len(items)}", box=None)
    for name in ("workload", "PID", "where", "state", "progress"):
        made.add_column(name)
    for name in ("blackout", "stall"):
        made.add_column(name, justify="right")
    for one in items:
        said = one.error["message"] if one.error else ""
        made.add_row(
            Text(report.plain(one.key)),
            str(one.pid),
            Text(report.plain(_where(one, node))),
            Text(_WORDS[one.state], style=_COLOURS.get(one.state, "")),
            Text(report.plain(progress.get(one.key, said))),
            _ms(one.blackout_ms),
            _ms(one.stall_ms),
        )
    return made


def _where(item: Item, node: str) -> str:
    return states.whereabouts(item.state, node, item.destination, item.moved) or "-"


def summary(result: Json) -> None:
    """The end of a drain, in words."""
    items = [Item.model_validate(one) for one in result["workloads"]]
    if items:
        from rich.console import Console

        Console().print(table(result["node"], items, {}))
    moved = [one for one in items if one.state == states.MOVED]
    text = f"{result['node']} {_ENDS[result['outcome']]}"
    if items and not result["dry_run"]:
        text += f": {len(moved)} of {len(items)} moved"
        if moved:
            worst = max(one.blackout_ms for one in moved)
            text += f", the longest blackout {worst:.1f} ms"
    if result["cordoned"]:
        text += f". It is cordoned: `migrate uncordon {result['node']}`"
    report.say(report.plain(text))
    if result["error"] is not None:
        report.problem(result["error"]["message"], result["error"]["hint"])
    if result["id"] and result["outcome"] in (
        outcome.INTERRUPTED, outcome.IN_DOUBT, outcome.INCOMPLETE,
    ) and _left(items):  # fmt: skip
        report.say(f"`migrate drain --resume {result['id']}` goes on with the others.")


def _left(items: list[Item]) -> bool:
    return any(one.state not in states.OVER or one.state == states.IN_DOUBT for one in items)


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value else "-"
