"""`migrate schedule serve`."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import click

from orchestrator.cli.observing import observed
from orchestrator.cli.options import OnSignals, failed, print_json, run_to_end
from orchestrator.cli.schedule.stored import JSON, STORE, store_path


@click.command(name="serve")
@click.argument("files", metavar="DIR|FILE...", nargs=-1, required=True, type=click.Path())
@STORE
@click.option("--hosts", metavar="FILE", help="The inventory, in place of the playbooks' own.")
@click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@JSON
@observed
@click.option("--test-clock", hidden=True, metavar="RATE,REAL,BEGIN")
@click.option("--test-runner", hidden=True, metavar="COMMAND")
def serve(files: tuple[str, ...], quiet: bool, as_json: bool, metrics: Any, **given: Any) -> int:
    """Run the playbooks that have `schedule:`, of files and directories, until a signal.

    Each run that is due is run once, however often this is killed and started again: what it had at
    work it then goes on with. Files are looked at again whenever they change. A signal begins
    nothing more, and undoes what is on the move while that is possible; the next start goes on.

    Exit status: 0 ended by a signal, 2 usage (nothing that could be served, too), 3 refused: the
    store is served by another, damaged, or cannot be written.

    With --json, at the end: {"served": [NAME], "interrupted": [{"playbook", "due", "drains", ...}],
    "error"}.
    """
    from agent.errors import AgentError
    from orchestrator.scheduling.books import Books
    from orchestrator.scheduling.store import Lock, Store
    from orchestrator.scheduling.view import Lines, Silent, run_json

    view = Silent() if as_json or quiet else Lines()
    path = store_path(given["store"])
    try:
        books = Books(files)
        served = [one.name for one in books.first()]
        lock = Lock(path)
        try:
            store = Store(path, make=True)
            with contextlib.closing(store):
                view.note(f"serving {', '.join(served)}")
                metrics.begin()
                server = run_to_end(lambda on: _serve(given, store, books, view, metrics, on))
        finally:
            lock.release()
    except AgentError as error:
        return failed(error, as_json, served=[], interrupted=[])
    rows = [run_json(one) for one in server.interrupted]
    if as_json:
        print_json({"served": served, "interrupted": rows, "error": None})
    elif rows:
        names = ", ".join(one["playbook"] for one in rows)
        view.note(f"ended; interrupted: {names}. The next `migrate schedule serve` goes on.")
    else:
        view.note("ended; nothing was at work")
    return 0


async def _serve(
    given: dict[str, Any], store: Any, books: Any, view: Any, metrics: Any, on: OnSignals
) -> Any:
    on(lambda: server.stop())  # is called once this waits, when all below is there

    from orchestrator.draining.conductor import Conductor
    from orchestrator.scheduling.clock import Clock
    from orchestrator.scheduling.command import Command
    from orchestrator.scheduling.notify import Notifier
    from orchestrator.scheduling.server import Server
    from orchestrator.scheduling.store import Run
    from orchestrator.scheduling.view import Draining
    from orchestrator.scheduling.working import Drains, Keep, Work

    try:
        clock = Clock.of(given["test_clock"]) if given["test_clock"] else Clock()
    except ValueError as error:
        raise click.UsageError(f"--test-clock: {error}") from None

    def make(run: Run, path: str, keep: Keep) -> Work:
        if given["test_runner"]:
            return Command(run, given["test_runner"])
        told = Draining(view, run.playbook)
        return Drains(
            run, path, keep, told, given["ssh_config"], given["hosts"], clock.now,
            functools.partial(Conductor, ended=metrics.migration), metrics.drain,
        )  # fmt: skip

    server = Server(store, books, make, view, clock, Notifier())
    await server.serve()
    return server
