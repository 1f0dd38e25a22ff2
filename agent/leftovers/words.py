"""What is said of a journal, and what settling it does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.leftovers.journals import DAMAGED, EMPTY, EXPOSED, NEWER, UNREADABLE
from agent.leftovers.seen import SeenJournal
from agent.protocol import DESTINATION, TABLES, Found

_SHOWN = 3  # connections

# problem: (what is wrong, what clearing does or why it is not safe, command)
PROBLEMS = {
    EMPTY: (
        "its agent died before the first line was whole",
        "removes it: nothing was begun",
        "",
    ),
    DAMAGED: (
        "damaged: a record that must have been whole is not",
        "what was decided cannot be told; the other host's journal may say it",
        "od -c {path}",
    ),
    NEWER: (
        "of a newer format",
        "only the Streamferry that wrote it knows what is to be done",
        "migrate recover, in that version",
    ),
    UNREADABLE: (
        "it cannot be read",
        "what was decided cannot be told",
        "ls -l {path}",
    ),
    EXPOSED: (
        "others may have written it",
        "what it says cannot be trusted: see whose it is (`ls -l`); if only its mode was changed, "
        "the command mends that; removed, it would let a second copy run",
        "chmod 600 {path}",
    ),
}


def problem(one: SeenJournal) -> tuple[str, str, str]:
    """(what is wrong with it, what clearing it does or why that is not safe, command)"""
    detail, clearing, command = PROBLEMS[one.problem]
    if one.problem == EMPTY and one.role == DESTINATION:
        detail = "no line of it can be read: its agent died before the first, or it is damaged"
        clearing = (
            "only the source knows whether it had handed over; where it has no journal of it any "
            f"more, and nothing else of it is here, `rm {one.path}`"
        )
    return detail, clearing, command


def of_journal(one: SeenJournal, who: str) -> tuple[str, str]:
    """(what was found, what settling it does, or why only `migrate recover` can)"""
    assert one.plan is not None
    if one.problem:
        return f"{one.role} of PID {one.plan.pid}, {one.state}", "its journal cannot be gone by"
    detail = f"{one.role} of PID {one.plan.pid}, {one.state}: {who}"
    state = TABLES[one.role].states[one.state]
    if state.found is Found.ASK:
        return detail, by_journal(one)
    if one.role == DESTINATION and state.word == "committed":
        end = f"the journal stays for {one.plan.source}, which may still have to be told"
        return detail, f"lets it go on here; {end}" if state.found is Found.AGAIN else end
    if state.found is Found.OVER:
        return detail, "removes it: all is over here"
    copy = "PID" if len(one.plan.tree) == 1 else "the tree of PID"
    copy = f"{copy} {one.plan.pid}"
    if one.role == DESTINATION:
        return detail, f"undoes it: the copy here never ran, and {one.plan.source} has {copy}"
    if one.state == "committed":
        return detail, f"ends the frozen copy: {copy} runs at {one.plan.destination}"
    if not one.living:
        return detail, f"undoes it; {copy} has ended with its host"
    return detail, f"undoes it: {copy} goes on here"


def must_not_run(one: SeenJournal) -> tuple[str, str]:
    """Of a copy that runs: (why it must not, what settling its journal does)"""
    assert one.plan is not None
    if one.role == DESTINATION:
        return f"runs, and must not: {one.plan.source} has the process", "undoing it ends this copy"
    if one.state == "committed":
        other = f"{one.plan.destination} has the process"
    else:
        other = f"it was handed over to {one.plan.destination}, where the process may run"
    _, does = of_journal(one, "")
    return f"runs, and must not: {other}", does


def by_journal(one: SeenJournal) -> str:
    """Why something of a migration in doubt stays."""
    destination = one.plan.destination if one.plan else "the destination"
    return f"only {destination} knows whether it has the process"


def connections(ends: Sequence[str]) -> str:
    """Some of the connections."""
    shown = ", ".join(ends[:_SHOWN])
    return shown + (f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else "")
