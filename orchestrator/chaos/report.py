"""A journal as a page that a person reads, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

_LONGEST = 300  # characters of what a step has given


def markdown(journal: dict[str, Any], outcome: str, errors: Iterable[str] = ()) -> str:
    """The whole page: the property, the verdict, and each step."""
    return "\n".join(_lines(journal, outcome, errors)) + "\n"


def _lines(journal: dict[str, Any], outcome: str, errors: Iterable[str]) -> Iterator[str]:
    experiment = journal["experiment"]
    yield f"# {_one_line(experiment['title'])}"
    yield ""
    yield str(experiment["description"]).strip()
    yield ""
    seconds = float(journal.get("duration", 0))
    yield f"**{outcome}**, after {seconds:.1f} s, begun {journal['start']}"
    for error in errors:
        yield f"\n> {_one_line(error)}"
    hypothesis = experiment.get("steady-state-hypothesis") or {}
    if hypothesis:
        yield from _section(f"Steady state: {_one_line(hypothesis['title'])}")
        yield from _row("probe", "due", "before", "after")
        yield from _row(*["---"] * 4)
        seen = [_values(journal["steady_states"][when]) for when in ("before", "after")]
        for probe in hypothesis.get("probes", []):
            name = probe["name"]
            yield from _row(name, _shown(probe["tolerance"]), *(one.get(name, "") for one in seen))
    for title, key in (("What was done", "run"), ("Rollbacks", "rollbacks")):
        yield from _section(title)
        yield from _row("at", "took", "step", "", "gave")
        yield from _row(*["---"] * 5)
        for run in journal.get(key) or []:
            yield from _step(run)


def _section(title: str) -> Iterator[str]:
    yield from ("", f"## {title}", "")


def _values(state: dict[str, Any] | None) -> dict[str, str]:
    """What each probe gave, by its name."""
    return {
        run["activity"]["name"]: ("" if run.get("tolerance_met") else "**NOT MET** ") + _given(run)
        for run in (state or {}).get("probes", [])
    }


def _step(run: dict[str, Any]) -> Iterator[str]:
    at = str(run["start"]).partition("T")[2][:12]
    took = f"{float(run.get('duration', 0)):.2f} s"
    yield from _row(at, took, run["activity"]["name"], run.get("status", "not ended"), _given(run))


def _given(run: dict[str, Any]) -> str:
    if run.get("status") == "failed":
        return _shown(str((run.get("exception") or [""])[-1]).strip())
    return "" if run.get("output") is None else _shown(run["output"])


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _row(*cells: object) -> Iterator[str]:
    yield "| " + " | ".join(_one_line(cell) for cell in cells) + " |"


def _one_line(text: object) -> str:
    """As it stands, within a table: neither a line nor a cell ends in it, nothing is markup."""
    line = " ".join(str(text).split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
