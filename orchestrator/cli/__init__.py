"""The command line: `migrate SRC DST --pid N`, and one file for each further verb.

Importing this must stay quick, for `--help` and completion: asyncssh and rich load when needed.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from agent import __version__
from orchestrator.cli.chaos import chaos
from orchestrator.cli.check import check
from orchestrator.cli.cordon import cordon, uncordon
from orchestrator.cli.doctor import doctor
from orchestrator.cli.drain import drain
from orchestrator.cli.move import move
from orchestrator.cli.playbook import playbook
from orchestrator.cli.records import list_, show
from orchestrator.cli.recover import recover
from orchestrator.cli.report import report
from orchestrator.cli.schedule import schedule

_DEFAULT = "move"
_WITH_VALUE = (
    "-F", "--pid", "--max-blackout", "--address", "--images-dir", "--fault", "--sync",
    "--bandwidth", "--memory", "--max-rounds",
    "--to", "--playbook", "--hosts", "--resume", "--reason", "--select", "--max-parallel",
    "--store", "--limit", "--test-clock", "--test-runner",
    "--trace", "--html", "--log-file", "--log-level", "--metrics-file",
    "--journal", "--report",
)  # fmt: skip


class DefaultVerb(click.Group):
    """A group whose first word may be a verb; without one it moves."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Options may stand before the verb, as in `migrate -F FILE --json check ...`."""
        if not arguments or arguments[0] in ("--help", "--version"):
            return super().parse_args(context, arguments)
        return super().parse_args(context, self.verb_first(arguments))

    def format_usage(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("migrate", "[check] SRC DST --pid N [OPTIONS]")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Those of the default verb, which most people want to see."""
        move.format_options(click.Context(move), formatter)
        self.format_commands(context, formatter)

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs, and the options of the default one."""
        found = super().shell_complete(context, incomplete)
        if incomplete.startswith("-"):
            known = {item.value for item in found}
            more = move.shell_complete(click.Context(move, parent=context), incomplete)
            found += [item for item in more if item.value not in known]
        return found

    def verb_first(self, arguments: list[str]) -> list[str]:
        index = 0
        while index < len(arguments):
            word = arguments[index]
            if word == "--":
                break
            if not word.startswith("-"):
                if word in self.commands:
                    verb, rest = self.commands[word], arguments[index + 1 :]
                    below = isinstance(verb, click.Group) and rest and rest[0] in verb.commands
                    words = [word, rest.pop(0)] if below else [word]
                    return [*words, *arguments[:index], *rest]
                break
            index += 2 if word in _WITH_VALUE else 1
        return [_DEFAULT, *arguments]


def verb_of(group: DefaultVerb, arguments: list[str]) -> str:
    """The verb of a command line, as "drain" or "playbook check"."""
    words = group.verb_first(arguments)
    below = group.commands.get(words[0])
    more = isinstance(below, click.Group) and len(words) > 1 and words[1] in below.commands
    return " ".join(words[: 2 if more else 1])


@click.group(
    cls=DefaultVerb,
    context_settings={"help_option_names": ["--help"]},
    epilog=(
        "SRC and DST are [user@]host[:port] or names of your ssh configuration. Without a verb "
        "the process is moved; `migrate move check dst ...` reaches a host that is named as a "
        "verb. Exit status: 0 migrated, 1 rolled back, 2 usage, 3 refused, 4 in doubt. Completion: "
        'eval "$(_MIGRATE_COMPLETE=bash_source migrate)".'
    ),
)
@click.version_option(__version__, prog_name="migrate")
def migrate() -> None:
    """Move a running process between two hosts while its TCP connections stay up.

    \b
    migrate SRC DST --pid N          move it
    migrate check SRC DST --pid N    only see whether it could move
    migrate recover [ID|HOST]        end what was interrupted
    migrate doctor HOST              find what was left behind there, and clear it
    migrate list [HOST]...           migrations begun here, or interrupted there
    migrate show ID                  one of them
    migrate report ID|last           its timeline, and what the clients felt; --html for a page
    migrate drain NODE --to HOST     empty a host: all that has a service address moves
    migrate cordon HOST...           nothing migrates onto it, until `migrate uncordon HOST...`
    migrate playbook check FILE...   is a playbook right?
    migrate schedule serve FILE...   run playbooks when their time comes
    migrate chaos run FILE           an experiment that breaks things on purpose; also `list`
    migrate chaos points             where a fault can be injected
    """


migrate.add_command(move)
for verb in (
    check, recover, doctor, list_, show, report, drain, cordon, uncordon, playbook, schedule, chaos,
):  # fmt: skip
    migrate.add_command(verb)
