"""`migrate recover [ID|HOST]`: end what was interrupted, and say how and why."""

from __future__ import annotations

import sys
from typing import Any

import click

from orchestrator.cli.observing import observed
from orchestrator.cli.options import ask, damage, failed, print_json, say_damaged


@click.command(name="recover")
@click.argument("what", metavar="[ID|HOST]", required=False)
@click.option(
    "--lost",
    metavar="HOST",
    help="HOST will never come back with the process: where it cannot be reached, go on without.",
)
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
@observed
def recover(
    what: str | None, lost: str | None, ssh_config: str | None, as_json: bool, metrics: Any
) -> int:
    """Finish or undo migrations that were interrupted.

    ID: that one. HOST: all that the host's journals name. Neither: all that were begun here and
    have no result. The hosts' journals decide: what the destination has committed is finished,
    anything else is undone, and exactly one copy goes on.

    --lost ends the doubt about a host that is gone for good. It is your word against its: should
    it come back with the process running, there are two. Without it, a source that has handed the
    process over keeps its copy frozen until it knows.

    Exit status: 0 all is settled, 1 the copy that should go on ended with its host, 2 usage (a
    HOST that is none, too), 3 nothing could be reached or is known, it was interrupted, or a record
    or a journal cannot be read (what the others name is recovered), 4 still in doubt, or a host is
    left to be told.

    With --json: {"migrations": [{"id", "outcome": "migrated" | "rolled-back" | "in-doubt" | "over",
    "lost": bool, "unfinished": [role], "source": {"host", "found", "state", "living": [pid],
    "error"}, "destination": ...}], "damaged": [{"path", "code", "message", "hint"}], "error"}. A
    damaged journal has a "host", too.
    """
    from agent.errors import EXIT_MIGRATED, AgentError
    from orchestrator import report
    from orchestrator.recovering import Recoverer

    worker = Recoverer(ssh_config, lost=lost)
    try:
        found = ask(worker.recover(what), "recover")
        for result in worker.first_ends:  # whoever began them was killed before it counted
            metrics.migration(result)
        metrics.write()
    except AgentError as error:
        rows = damage(worker.damaged)["damaged"]
        if not as_json:
            say_damaged(worker.damaged)
        return failed(error, as_json, migrations=[], damaged=rows)
    if as_json:
        print_json({"migrations": [one.to_json() for one in found], **damage(worker.damaged)})
    else:
        _say(found, worker.damaged)
    for text in worker.unwritten:
        report.say(f"migrate: {text}", sys.stderr)
    statuses = [one.exit_status for one in found] + [one.exit_status for one in worker.damaged]
    return max(statuses, default=EXIT_MIGRATED)


def _say(found: list[Any], damaged: list[Any]) -> None:
    from orchestrator import report

    if not found and not damaged:
        report.say("Nothing to recover.")
    for one in found:
        report.say(f"{one.named.id}: {one.sentence}")
        for error in (*one.errors, *filter(None, [one.loss])):
            report.problem(error.message, error.hint)
    say_damaged(damaged)
