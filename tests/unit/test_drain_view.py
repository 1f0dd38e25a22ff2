"""What a person sees of a drain."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.draining import states, view
from orchestrator.draining.journal import Item
from orchestrator.draining.outcome import result
from orchestrator.scheduling import view as schedule_view


def item(key: str, state: str, **over: object) -> Item:
    facts = {"name": key, "pid": 4101, "born": 1, "comm": "x", "memory": 5, "destination": "dst"}
    return Item(**{"key": key, "state": state, **facts, **over})  # type: ignore[arg-type]


ROWS = [
    item("cache-a", states.MOVED, blackout_ms=41.26, stall_ms=42.0),
    item("cache-b", states.MOVING),
    item("web", states.IMMOVABLE, destination="",
         error={"code": "x", "message": "a pipe [red] ends \x1b[31melsewhere", "hint": "close it"}),
]  # fmt: skip


def shown(rows: list[Item], progress: dict[str, str]) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(view.table("src", rows, progress))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_table() -> None:
    text = shown(ROWS, {"cache-b": "dump process 40 %"})
    assert "Draining src: 2 of 3" in text
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["cache-a"] == "cache-a 4101 dst moved 41.3 ms 42.0 ms"
    assert lines["cache-b"] == "cache-b 4101 -> dst moving dump process 40 % - -"
    assert "a pipe [red] ends \\x1b[31melsewhere" in lines["web"] and "\x1b" not in text


WHERE = {
    states.WAITING: ("-> dst", " -> dst"),
    states.MOVING: ("-> dst", " -> dst"),
    states.CHECKING: ("dst", " -> dst"),
    states.RETURNING: ("-> src", " <- dst"),
    states.MOVED: ("dst", " -> dst"),
    states.RETURNED: ("src", ""),
    states.FAILED: ("src", ""),
    states.IMMOVABLE: ("src", ""),
    states.IN_DOUBT: ("-", " -> dst"),
    states.LOST: ("-", " -> dst"),
    states.GONE: ("-", ""),
}


@pytest.mark.parametrize("state", [*WHERE])
def test_each_is_shown_where_it_is(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    column, way = WHERE[state]
    assert f"4101  {column} " in shown([item("a", state)], {})
    view.Lines().changed(item("a", state))
    assert capsys.readouterr().out == f"  a{way}  {view._WORDS[state]}\n"


def test_one_that_is_not_well_is_where_it_was_last(capsys: pytest.CaptureFixture[str]) -> None:
    for moved, place in ((True, "dst"), (False, "src")):
        assert f"4101  {place} " in shown([item("a", states.UNWELL, moved=moved)], {})
    assert "4101  src " in shown([item("a", states.WAITING, destination="")], {})
    to = schedule_view.Draining(schedule_view.Lines(), "nightly")
    for state, way in ((states.MOVED, " -> dst"), (states.RETURNED, "")):
        to.changed(item("a", state))
        assert capsys.readouterr().out == f"nightly: a{way} {state}\n"


def test_every_state_has_a_word() -> None:
    assert set(view._WORDS) == set(states.MOVES)
    for state in states.MOVES:
        assert view._WORDS[state] in shown([item("a", state)], {})


def test_live(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stdout is no terminal, rich writes the last of it."""
    table = view.Table()
    table.note("before")
    table.begin("src")
    for row in ROWS:
        table.changed(row)
    table.progress(ROWS[1], "dump_process", 5, 10)
    table.note("a note [bold]")
    assert table._progress == {"cache-b": "dump process 50 %"}
    table.changed(ROWS[1])
    assert table._progress == {}
    table.end()
    table.end()
    text = capsys.readouterr().out
    assert "before" in text and "a note [bold]" in text


def test_a_summary_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    view.summary(result("src", ROWS, drain="20261126-070000-abcdef", interrupted=True))
    told = capsys.readouterr()
    assert "src is not empty: interrupted: 1 of 3 moved, the longest blackout 41.3 ms" in told.out
    assert "`migrate drain --resume 20261126-070000-abcdef` goes on" in told.out
    assert "error: web: a pipe" in told.err and "close it" in told.err
