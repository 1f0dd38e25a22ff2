"""Write the list in docs/troubleshooting.md from the error classes: `... [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.errors import AgentError  # noqa: E402
from docs.generated import renew  # noqa: E402
from orchestrator.errors import load_error_classes  # noqa: E402
from orchestrator.refusals import TABLE  # noqa: E402

TARGET = Path(__file__).with_name("troubleshooting.md")
MARK = "<!-- generated below by docs/make_troubleshooting.py -->\n"
_FIELD = re.compile(r"\{(\w+)[^}]*\}")


def _plain(template: str) -> str:
    return _FIELD.sub(r"*\1*", template).replace("|", "\\|").replace("\n", " ")


def rows() -> list[tuple[str, str, str, int]]:
    """(code, message, hint, exit status) of everything that can be said, by code."""
    load_error_classes()
    classes = {AgentError, *AgentError._registry.values()}
    found = [
        (one.code, _plain(one.template), _plain(one.hint_template), one.exit_status)
        for one in classes
    ]
    known = {code for code, *_ in found}
    found += [
        (code, _plain(words.message), _plain(words.hint), 3)
        for code, words in TABLE.items()
        if code not in known
    ]
    return sorted(found)


def generated() -> str:
    """What stands below the mark."""
    lines = ["", "| code | message | what to do | exit |", "| --- | --- | --- | --- |"]
    lines += [f"| `{code}` | {said} | {hint} | {status} |" for code, said, hint, status in rows()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    renew(TARGET, MARK, generated)
