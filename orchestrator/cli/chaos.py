"""`migrate chaos`: break things on purpose, to see that nothing is lost."""

from __future__ import annotations

import click

from orchestrator.cli.options import print_json


@click.group(name="chaos")
def chaos() -> None:
    """Break things on purpose, to see that nothing is lost.

    Without a command this is shown, with exit status 2, as by `migrate` alone.
    """


@chaos.command(name="points")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def points(as_json: bool) -> int:
    """List the points at which `migrate SRC DST --fault POINT@ROLE=ACTION` can inject a fault.

    With --json: {"points": [{"name", "role", "when", "actions": [str]}], "actions": {str: str}}.
    """
    from agent.fault import ACTIONS, POINTS
    from orchestrator import report

    if as_json:
        rows = [
            {"name": one.name, "role": one.role, "when": one.when, "actions": list(one.actions)}
            for one in POINTS
        ]
        print_json({"points": rows, "actions": ACTIONS})
        return 0
    for one in POINTS:
        report.say(f"{f'{one.name}@{one.role}':26} {one.when:52} {' '.join(one.actions)}")
    report.say("")
    for action, meaning in ACTIONS.items():
        report.say(f"{action:26} {meaning}")
    return 0
