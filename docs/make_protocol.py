"""Draw the tables of agent.protocol into docs/protocol.md: `make_protocol.py [--check]`.

The argument above the mark is written by hand and stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.protocol import DESTINATION_TABLE, SOURCE_TABLE, Found, Log, Table  # noqa: E402
from docs.generated import renew  # noqa: E402

TARGET = Path(__file__).with_name("protocol.md")
MARK = "<!-- generated below by docs/make_protocol.py -->\n"

_FOUND = {
    Found.FAIL: "undoes, as at `fail`",
    Found.AGAIN: "does its work again, to the end",
    Found.WAIT: "does its work again, then waits for the other host",
    Found.ASK: "waits for the other host's word",
    Found.OVER: "-",
}
_LOG = {Log.NOTHING: "", Log.NOTE: " (note)", Log.DECISION: " (**decision**)"}


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _diagram(table: Table) -> list[str]:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {_identifier(table.start)}"]
    for (state, event), move in table.moves.items():
        lines.append(f"    {_identifier(state)} --> {_identifier(move.to)}: {event}")
    for name in table.states:
        if not any(state == name for state, _ in table.moves):
            lines.append(f"    {_identifier(name)} --> [*]")
    return [*lines, "```"]


def _states(table: Table) -> list[str]:
    lines = ["| state | the copy here | silence means | who finds its agent dead |"]
    lines.append("| --- | --- | --- | --- |")
    for state in table.states.values():
        mark = " **(no way back alone)**" if state.name in table.committed else ""
        silence = table.silence.get(state.name)
        said = f"`{silence}`" if silence else "-"
        lines.append(f"| {state.name}{mark} | {state.copy} | {said} | {_FOUND[state.found]} |")
    return lines


def _moves(table: Table) -> list[str]:
    """Rows (states, event, move); states that an event leads out of in the same way share one."""
    lines = ["| in | at | to, in the journal | then, in this order |", "| --- | --- | --- | --- |"]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (state, event), move in table.moves.items():
        do = ", ".join(f"`{action}`" for action in move.do) or "-"
        rows.setdefault((event, move.to + _LOG[move.log], do), []).append(state)
    for (event, to, do), states in rows.items():
        lines.append(f"| {', '.join(states)} | `{event}` | {to} | {do} |")
    return lines


def draw(table: Table) -> str:
    """Diagram, states and moves of one role."""
    parts = (_diagram(table), _states(table), _moves(table))
    return "\n\n".join("\n".join(part) for part in parts)


def generated() -> str:
    """What stands below the mark."""
    parts = [f"## The {table.role}\n\n{draw(table)}" for table in (SOURCE_TABLE, DESTINATION_TABLE)]
    return "\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    renew(TARGET, MARK, generated)
