"""Options of every verb that migrates: its log, and the file with its metrics."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.options import Command

_LEVELS = ("debug", "info", "warning", "error")
_OPTIONS = [
    click.option(
        "--log-json", is_flag=True,
        help="Log to stderr, one JSON object a line, with the migration's id and the host; stderr "
        "then has nothing else.",
    ),
    click.option(
        "--log-file", metavar="FILE", type=click.Path(dir_okay=False),
        help="Append the log to FILE instead; without --log-json as text.",
    ),
    click.option(
        "--log-level", type=click.Choice(_LEVELS),
        help="What the log has.  [default: info; debug with -v, warning with -q]",
    ),
    click.option(
        "--metrics-file", metavar="FILE", type=click.Path(dir_okay=False),
        help="Write the totals of all migrations begun here to FILE, for Prometheus (a .prom file "
        "in the directory of node_exporter's textfile collector).",
    ),
]  # fmt: skip


def observed(command: Command) -> Command:
    """Give a verb these options; it is called with `metrics`, an `orchestrator.metrics.Metrics`."""

    @functools.wraps(command)
    def run(
        *arguments: Any,
        log_json: bool,
        log_file: str | None,
        log_level: str | None,
        metrics_file: str | None,
        **given: Any,
    ) -> Any:
        from orchestrator import log
        from orchestrator.metrics import Metrics

        if metrics_file is not None:
            _check(metrics_file)
        level = log_level or (
            "debug" if given.get("verbose") else "warning" if given.get("quiet") else "info"
        )
        try:
            with log.writing(log_json, log_file, log.LEVELS[level]):
                return command(*arguments, metrics=Metrics(metrics_file), **given)
        except log.LogUnwritable as error:
            raise click.UsageError(error.message) from None

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def _check(file: str) -> None:
    """Raises `click.UsageError` where the metrics could not be written there."""
    from orchestrator import atomic

    if not file:
        raise click.UsageError("--metrics-file: the name of the file is empty; give one")
    try:
        place = atomic.behind(Path(file))
    except OSError as error:
        raise click.UsageError(f"--metrics-file {file}: {error.strerror}") from None
    if place is None:
        raise click.UsageError(
            f"--metrics-file {file}: it is no regular file, and would be replaced by one; give the "
            "name of a file"
        )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise click.UsageError(
            f"--metrics-file {file}: {place.parent} is no directory that this user may write to"
        )
