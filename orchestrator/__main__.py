"""The command `migrate`: what ends up here is an exit status and, with --json, one object."""

from __future__ import annotations

import json
import signal
import sys

from agent.errors import EXIT_ROLLED_BACK, EXIT_USAGE, AgentError, Cancelled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Console entry point; never returns."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, from the very start
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        return _run(arguments)
    except KeyboardInterrupt:  # so early that nobody caught the signal yet, or where nobody does
        return _interrupted(arguments)


def _run(arguments: list[str]) -> int:
    # A signal waits for these: a package that was imported by half cannot be imported again, and
    # they say what was interrupted.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        import click

        import orchestrator.errors
        import orchestrator.report  # noqa: F401
        from orchestrator.cli import migrate
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        status = migrate.main(args=arguments, prog_name="migrate", standalone_mode=False)
    except click.ClickException as error:
        if "--json" not in arguments:
            error.show()
            return EXIT_USAGE
        from orchestrator.errors import UsageProblem

        problem = UsageProblem(detail=error.format_message())
        context = error.ctx if isinstance(error, click.UsageError) else None
        moving = ("migrate", "migrate move", "migrate check")
        if context is not None and context.command_path not in moving:
            from orchestrator.cli.options import failed

            return failed(problem, True)
        return _failed(arguments, "refused", problem, EXIT_USAGE)
    except click.Abort:
        raise KeyboardInterrupt from None
    return int(status or 0)


def _interrupted(arguments: list[str]) -> int:
    """A migration that was never begun is cancelled; any other verb is just not over."""
    from orchestrator.cli import migrate, verb_of
    from orchestrator.cli.options import failed
    from orchestrator.errors import Interrupted

    verb = verb_of(migrate, arguments)
    if verb in ("move", "check"):
        return _failed(arguments, "rolled-back", Cancelled(phase="check"), EXIT_ROLLED_BACK)
    return failed(Interrupted(verb=verb), "--json" in arguments)


def _failed(arguments: list[str], outcome: str, error: AgentError, status: int) -> int:
    """Say why nothing was begun, in the form that was asked for."""
    from orchestrator import report

    if "--json" in arguments:
        from agent.plan import new_id
        from orchestrator.migration import result

        answer = result.empty(new_id(), "", "", 0)
        answer.update(outcome=outcome, error=result.described(error, "check"))
        report.say(json.dumps(answer))
    else:
        report.problem(error.message, error.hint)
    return status


if __name__ == "__main__":
    main()
