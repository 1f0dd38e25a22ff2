"""The command `migrate`: what ends up here is an exit status and, with --json, one object."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Console entry point; never returns."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    import click

    from agent.errors import EXIT_USAGE
    from orchestrator.cli import migrate

    try:
        status = migrate.main(args=arguments, prog_name="migrate", standalone_mode=False)
    except click.ClickException as error:
        if "--json" in arguments:
            from agent.plan import new_id
            from orchestrator.migration import result

            answer = result.empty(new_id(), "", "", 0)
            answer["error"] = {
                "code": "usage",
                "message": error.format_message(),
                "hint": "See `migrate --help`.",
                "phase": "check",
            }
            print(json.dumps(answer), flush=True)
        else:
            error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130
    return int(status or 0)


if __name__ == "__main__":
    main()
