"""docs/observing.md names each event of the log, and none that there is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FREE = {"%s"}  # what was said to a person, too


def told(tree: ast.Module) -> Iterator[str]:
    """The events of a module: what its logger is called with."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="_LOG"), attr="log"):
                event = node.args[1]
            case (
                ast.Attribute(
                    value=ast.Name(id="_LOG"),
                    attr="debug" | "info" | "warning" | "error" | "exception",
                )
                | ast.Name(id="_log")
            ):
                event = node.args[0]
            case _:
                continue
        if isinstance(event, ast.Name):  # of a helper, whose callers are found themselves
            continue
        texts = [one.value for one in ast.walk(event) if isinstance(one, ast.Constant)]
        assert texts, ast.unparse(node)
        # Of `a if x == "b" else c` what is told is a or c.
        choice = event if isinstance(event, ast.IfExp) else None
        ends = [choice.body, choice.orelse] if choice else [event]
        yield from (str(one.value) for one in ends if isinstance(one, ast.Constant))


def events() -> set[str]:
    found: set[str] = set()
    for package in ("agent", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"getLogger\(__name__\)\.", text), path
            if "getLogger" in text:
                found |= set(told(ast.parse(text)))
    return found


def test_each_event_is_in_the_table() -> None:
    text = (ROOT / "docs/observing.md").read_text()
    table = text[text.index("| event |") :].split("\n\n")[0]
    named = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    known = {one.replace("STATE", "%s") for one in named}
    assert len(named) == len(known)
    assert known == events() - FREE
