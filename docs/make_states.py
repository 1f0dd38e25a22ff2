"""Draw docs/states.md from the tables of agent.states: `python docs/make_states.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.states import DESTINATION_TABLE, SOURCE_TABLE, Table  # noqa: E402

TARGET = Path(__file__).with_name("states.md")


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def draw(table: Table) -> str:
    """A Mermaid state diagram and the table of states of one role."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {_identifier(table.start)}"]
    for (state, event), after in table.moves.items():
        lines.append(f"    {_identifier(state)} --> {_identifier(after)}: {event}")
    for name in table.states:
        if not any(state == name for state, _ in table.moves):
            lines.append(f"    {_identifier(name)} --> [*]")
    lines += ["```", "", "| state | the copy here | leaving it backwards |", "| --- | --- | --- |"]
    for state in table.states.values():
        mark = " **(no way back alone)**" if state.name in table.committed else ""
        lines.append(f"| {state.name}{mark} | {state.copy} | {state.undo or '-'} |")
    return "\n".join(lines)


def page() -> str:
    """The whole of docs/states.md."""
    parts = [
        "# States of a migration",
        "Generated from `agent/states.py` by `docs/make_states.py`; do not edit.",
    ]
    for table in (SOURCE_TABLE, DESTINATION_TABLE):
        parts += [f"## The {table.role}", draw(table)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == page() else "docs/states.md is not up to date")
    TARGET.write_text(page())


if __name__ == "__main__":
    main()
