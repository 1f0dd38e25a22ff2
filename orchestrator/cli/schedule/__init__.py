"""`migrate schedule`: run playbooks when their time comes, and see and steer that."""

from __future__ import annotations

import click

from orchestrator.cli.schedule.lists import history, list_, next_
from orchestrator.cli.schedule.serving import serve
from orchestrator.cli.schedule.steering import pause, resume, run


@click.group(name="schedule")
def schedule() -> None:
    """Run playbooks when their time comes (docs/schedule.md)."""


for verb in (serve, list_, next_, run, pause, resume, history):
    schedule.add_command(verb)
