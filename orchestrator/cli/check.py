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

    With --json: {"outcome": "ready" | "refused", "error", "refusals": [{"code", "message",
    "hint"}], "plan": what would move, or null, ...}.
    """
    driver, result = run_driver(given, "check")

    from orchestrator import report
    from orchestrator.migration.result import exit_status

    ready = result["outcome"] == "ready"
    if given["as_json"]:
        kept = ("id", "outcome", "error", "source", "destination", "pid")
        answer = {key: result[key] for key in kept}
        answer["refusals"] = [asdict(one) for one in driver.refusals]
        answer["plan"] = driver.plan.to_wire() if driver.plan else None
        print_json(answer)
    elif ready and not given["quiet"]:
        report.say(f"Ready: PID {given['pid']} can move to {given['destination']}")
    elif driver.refusals:
        report.refusals(driver.refusals)
    elif error := result["error"]:
        report.problem(error["message"], error["hint"])
    return 0 if ready else exit_status(result, driver.error)
