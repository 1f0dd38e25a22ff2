"""`migrate SRC DST --pid N`: the move itself."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.observing import observed
from orchestrator.cli.options import print_json, run_driver, shared


@click.command(name="move")
@click.option("--dry-run", is_flag=True, help="Only check, as `migrate check` does.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the timeline of both hosts to FILE, in Chrome's trace format.",
)
@shared
@observed
@click.pass_context
def move(
    context: click.Context, /, dry_run: bool, trace: str | None, metrics: Any, **given: Any
) -> int:
    """Move process N from SRC to DST with its TCP connections.

    Exit status: 0 migrated, 1 rolled back, 2 usage (a host that is none, too), 3 refused, 4 in
    doubt.
    """
    if dry_run:
        from orchestrator.cli.check import check

        return int(context.invoke(check, **given))
    driver, result = run_driver(given, "migrate")
    metrics.migration(result)
    if trace is not None:
        _trace(trace, result, driver.timeline)

    from orchestrator import report
    from orchestrator.migration.result import exit_status

    if given["as_json"]:
        print_json(result)
    else:
        if not given["quiet"]:
            report.summary(result, given["verbose"])
        if driver.refusals:
            report.refusals(driver.refusals)
        elif error := result["error"]:
            report.problem(error["message"], error["hint"])
    return exit_status(result, driver.error)


def _trace(path: str, result: dict[str, Any], timeline: list[Any]) -> None:
    import json
    import sys

    from orchestrator import report
    from orchestrator.trace import chrome

    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(chrome(result, timeline), file)
    except OSError as error:
        report.say(f"migrate: no trace in {path}: {error.strerror}", sys.stderr)
