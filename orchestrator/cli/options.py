"""Options that the verbs share, and the request they make."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from agent.bandwidth import MAX_RATE, MIN_RATE
from agent.errors import EXIT_IN_DOUBT, EXIT_REFUSED, EXIT_USAGE, AgentError
from agent.plan import (
    DEFAULT_IMAGES_DIR,
    DEFAULT_MAX_BLACKOUT,
    MAX_BLACKOUT_LIMIT,
    MAX_PID,
    MAX_ROUNDS,
    MEMORY_MODES,
)

Command = Callable[..., Any]
OnSignals = Callable[[Callable[[], None]], None]
_T = TypeVar("_T")

_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)([KMG]?)", re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _rate(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """Bytes a second, of a number with K, M or G for thousands, millions and so on; 0 for None."""
    if value is None:
        return 0
    match = _RATE.fullmatch(value.upper())
    rate = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not MIN_RATE <= rate <= MAX_RATE:
        detail = f"{value!r} is no number of bytes a second between 100K and 1000G, as 100M is."
        raise click.BadParameter(detail)
    return rate


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_OPTIONS = [
    click.argument("source", metavar="SRC"),
    click.argument("destination", metavar="DST"),
    click.option(
        "--pid", type=click.IntRange(1, MAX_PID), required=True, metavar="N",
        help="The process; its children move with it.",
    ),
    click.option("-F", "ssh_config", metavar="FILE", help="SSH configuration to use, as ssh -F."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else."),
    click.option(
        "--max-blackout", type=click.FloatRange(0, MAX_BLACKOUT_LIMIT, min_open=True),
        default=DEFAULT_MAX_BLACKOUT, show_default=True, metavar="SECONDS",
        help="Roll back rather than stand still for longer.",
    ),
    click.option(
        "--address", multiple=True, metavar="ADDR",
        help="A service address that no socket shows (a wildcard listener's). Repeatable.",
    ),
    click.option(
        "--memory", "memory_mode", type=click.Choice(["auto", *MEMORY_MODES]), default="auto",
        show_default=True,
        help="How the memory goes. stop: all of it while the process stands still. pre-copy: most "
        "of it before, round by round. post-copy: what is left when it runs at DST already, which "
        "needs SRC until all has come. auto: stop or pre-copy, by its size and what DST can do, or "
        "post-copy, where the process changes its memory too fast for --max-blackout.",
    ),
    click.option(
        "--max-rounds", type=click.IntRange(0, MAX_ROUNDS), metavar="N",
        help="Of memory that goes ahead, before the process stands still.  [default: 8; 1 before "
        "post-copy, which may also go without]",
    ),
    click.option(
        "--bandwidth", callback=_rate, metavar="RATE",
        help="Bytes a second, at most, of what goes while the process still runs at SRC: 500K, "
        "100M, 1.5G (125M fills a link of 1 Gbit/s). Once it stands still, nothing is held back. "
        "Without it there is no limit.",
    ),
    click.option(
        "--sync", "sync_paths", multiple=True, metavar="PATH",
        help="Bring this file or directory to DST first, and what of it has changed. Repeatable.",
    ),
    click.option(
        "--sync-open", is_flag=True,
        help="Bring the files that the process has open or mapped, where they differ.",
    ),
    click.option(
        "--images-dir", default=DEFAULT_IMAGES_DIR, show_default=True, metavar="DIR",
        help="Where images rest on both hosts; a tmpfs.",
    ),
    click.option(
        "--without-missing-options", is_flag=True,
        help="Warn, and do not refuse, where DST lacks an option that a TCP socket has.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say more: every stream, for instance."),
    click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong."),
    # For tests and chaos experiments.
    click.option("--fault", "faults", multiple=True, hidden=True, metavar="POINT@ROLE=ACTION"),
    click.option("--test-no-replay", is_flag=True, hidden=True),
    click.option("--test-ignore-boundary", is_flag=True, hidden=True),
]  # fmt: skip


def shared(command: Command) -> Command:
    """Give a verb the shared options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_request(given: dict[str, Any]) -> Any:
    """The `Request` of the parsed options. Raises `click.UsageError`."""
    from agent.fault import parse
    from orchestrator.memory import no_rounds
    from orchestrator.migration.driver import Request
    from orchestrator.plan import Options
    from orchestrator.sync import Wish

    try:
        for fault in given["faults"]:
            parse(fault)
        wrong = no_rounds(given["max_rounds"], given["memory_mode"], "--max-rounds", "--memory")
        if wrong:
            raise click.UsageError(wrong)
        options = Options(
            max_blackout=given["max_blackout"],
            images_dir=given["images_dir"],
            address=tuple(given["address"]),
            memory_mode=given["memory_mode"],
            max_rounds=given["max_rounds"],
            bandwidth=given["bandwidth"],
            replay=not given["test_no_replay"],
            boundary=not given["test_ignore_boundary"],
            missing_options=given["without_missing_options"],
            sync=Wish(tuple(dict.fromkeys(given["sync_paths"])), given["sync_open"]),
            faults=tuple(given["faults"]),
        )
    except AgentError as error:
        raise click.UsageError(error.message) from None
    return Request(
        given["source"], given["destination"], given["pid"], given["ssh_config"], options
    )


def run_driver(given: dict[str, Any], verb: str) -> tuple[Any, dict[str, Any]]:
    """Run `check` or `migrate` of a driver; the driver and its result.

    From here on signals are the driver's, and ignored when it has ended: what came of it is then
    still told, with its exit status.
    """
    from orchestrator.migration.driver import Driver
    from orchestrator.records import Records
    from orchestrator.report import Human, Silent

    request = make_request(given)
    quiet = given["as_json"] or given["quiet"]
    reporter = Silent() if quiet else Human("Checking" if verb == "check" else "Moving")

    async def drive(on_signals: OnSignals) -> tuple[Any, dict[str, Any]]:
        driver = Driver(request, reporter, Records())
        on_signals(driver.interrupt)
        return driver, await getattr(driver, verb)()

    return run_to_end(drive)


def run_to_end(work: Callable[[OnSignals], Coroutine[Any, Any, _T]]) -> _T:
    """Run what a signal may interrupt, and which then comes to an end of its own.

    `work` is given a function that takes what is to be called at a signal.
    """

    async def go() -> _T:
        loop = asyncio.get_running_loop()

        def on_signals(interrupt: Callable[[], None]) -> None:
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    loop.add_signal_handler(number, interrupt)  # nohup has it ignored

        try:
            return await work(on_signals)
        finally:  # the loop puts the default handlers back before we can ignore them
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    try:
        return asyncio.run(go())
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ask(work: Coroutine[Any, Any, _T], verb: str) -> _T:
    """Run what asks hosts. Raises `AgentError`, also where a signal ends it."""
    from orchestrator.errors import Interrupted

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise Interrupted(verb=verb) from None


def failed(error: AgentError, as_json: bool, **empty: Any) -> int:
    """Say why there is no answer, in the form that was asked for; the exit status.

    `empty`: the other keys of the answer. Nothing was rolled back by a verb that only looks, or
    that recovers: what has no status of its own was refused.
    """
    from orchestrator import report
    from orchestrator.errors import told

    if as_json:
        print_json({**empty, "error": told(error)})
    else:
        report.problem(error.message, error.hint)
    return error.exit_status if error.exit_status in (EXIT_USAGE, EXIT_IN_DOUBT) else EXIT_REFUSED


def damage(damaged: list[Any]) -> dict[str, Any]:
    """The records that cannot be read, and the first of them as the error, for an answer.

    They are this machine's, or journals of a host, which is then named, too.
    """
    from orchestrator.errors import told

    names = ("path", "host")
    rows = [
        {**{name: one.fields[name] for name in names if name in one.fields}, **told(one)}
        for one in damaged
    ]
    return {"damaged": rows, "error": told(damaged[0]) if damaged else None}


def say_damaged(damaged: list[Any]) -> None:
    """The same, for a person."""
    from orchestrator import report

    for one in damaged:
        host = one.fields.get("host")
        report.problem(f"{host}: {one.message}" if host else one.message, one.hint)


def print_json(result: dict[str, Any]) -> None:
    """The one line on stdout."""
    from orchestrator.report import say

    say(json.dumps(result))
