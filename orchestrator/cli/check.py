"""`migrate check SRC DST --pid N`: see whether it could move; nothing is touched."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from orchestrator.cli.options import print_json, run_driver, shared


@click.command(name="check")
@shared
def check(**given: Any) -> int:
    """Only check whether process N could move from SRC to DST.

    Exit status: 0 it could, 1 interrupted, 2 usage (a host that is none, too), 3 refused, or a host
    could not be reached.

    With --json: {"outcome": "ready" | "refused", "error", "refusals": [{"code", "message",
    "hint"}], "plan": what would move, or null, "streams": [{"local", "remote", "state"}], ...}.
    """
    driver, result = run_driver(given, "check")

    from orchestrator import report
    from orchestrator.migration.result import exit_status

    ready = result["outcome"] == "ready"
    if given["as_json"]:
        kept = ("id", "outcome", "error", "source", "destination", "pid")
        answer = {key: result[key] for key in kept}
        answer["refusals"] = [asdict(one) for one in driver.refusals]
        if result["outcome"] == "refused" and not driver.refusals:  # by a host or an agent
            answer["refusals"] = [
                {key: result["error"][key] for key in ("code", "message", "hint")}
            ]
        answer["plan"] = driver.plan.to_wire() if driver.plan else None
        answer["streams"] = _streams(driver.process["connections"]) if driver.plan else []
        print_json(answer)
    elif ready and not given["quiet"]:
        report.say(f"Ready: PID {given['pid']} can move to {given['destination']}")
    elif driver.refusals:
        report.refusals(driver.refusals)
    elif error := result["error"]:
        report.problem(error["message"], error["hint"])
    return 0 if ready else exit_status(result, driver.error)


def _streams(connections: list[Any]) -> list[dict[str, str]]:
    """The connections of the process's facts, as a migration's result names its streams."""
    from agent.kernel.uapi import STATE_NAMES
    from agent.probe.facts import ConnectionFacts
    from orchestrator.placement import endpoint

    return [
        {
            "local": endpoint(one.local, one.local_port),
            "remote": endpoint(one.remote, one.remote_port),
            "state": STATE_NAMES[one.state],
        }
        for one in (ConnectionFacts(*row) for row in connections)
    ]
