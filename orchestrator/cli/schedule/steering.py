"""`migrate schedule run`, `pause` and `resume`."""

from __future__ import annotations

import click

from orchestrator.cli.options import failed, print_json
from orchestrator.cli.schedule.stored import JSON, STORE, changing, say, store_path


@click.command(name="run")
@click.argument("name")
@STORE
@JSON
def run(name: str, store: str | None, as_json: bool) -> int:
    """Ask whoever serves a schedule to run it now, paused or not; after the run that is at work.

    Exit status: 0 it is asked for, 3 there is no such schedule, it is wrong, or nobody serves it.

    With --json: {"run": {"playbook", "due", ...} or null, "error"}.
    """
    import time

    from agent.errors import AgentError
    from orchestrator.scheduling.deciding import WAITING
    from orchestrator.scheduling.errors import CannotRun, NotServed
    from orchestrator.scheduling.store import SERVED, Run, server_of
    from orchestrator.scheduling.view import run_json

    path = store_path(store)
    try:
        server = server_of(path)
        with changing(path, name) as (found, row):
            if server is None:
                raise NotServed(path=str(path), name=name)
            if row.state != SERVED:
                raise CannotRun(name=name, detail=row.why)
            made = Run(name, round(time.time(), 3), WAITING, asked=True)
            while not found.add(made):
                made.due = round(made.due + 0.001, 3)
    except AgentError as error:
        return failed(error, as_json, run=None)
    if as_json:
        print_json({"run": run_json(made, row), "error": None})
    else:
        say(f"{name} is asked for; `migrate schedule history {name}` has what comes of it.")
    return 0


@click.command(name="pause")
@click.argument("name")
@STORE
@JSON
def pause(name: str, store: str | None, as_json: bool) -> int:
    """Run a schedule no more until `migrate schedule resume`. What is at work goes on.

    Exit status: 0 it is paused, 3 there is no such schedule.

    With --json: {"name", "paused": bool, "changed": bool, "error"}.
    """
    import time

    return _pause(name, store, as_json, time.time())


@click.command(name="resume")
@click.argument("name")
@STORE
@JSON
def resume(name: str, store: str | None, as_json: bool) -> int:
    """Run a schedule again. Nothing is made up for.

    Exit status: 0 it is not paused, 3 there is no such schedule.

    With --json: {"name", "paused": bool, "changed": bool, "error"}.
    """
    return _pause(name, store, as_json, None)


def _pause(name: str, store: str | None, as_json: bool, since: float | None) -> int:
    from agent.errors import AgentError

    try:
        with changing(store_path(store), name) as (found, row):
            changed = (row.paused is None) != (since is None)
            if changed:
                found.pause(name, since)
    except AgentError as error:
        return failed(error, as_json, name=name, paused=None, changed=False)
    paused = since is not None
    if as_json:
        print_json({"name": name, "paused": paused, "changed": changed, "error": None})
    else:
        word = "paused" if paused else "not paused"
        say(f"{name} is {word}." if changed else f"{name} was {word} already.")
    return 0
