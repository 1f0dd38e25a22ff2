"""For each experiment of playbooks/chaos one way to break the property that it guards.

A mutant is a change of the product, made in a copy of the code, or something hostile that is done
from outside at one step of the experiment. The probes are never touched. `tells` is the probe which
has to find it: an experiment that only fails to be carried out has found nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.lab import ROOT, SSH_CONFIG

EXPERIMENTS = ROOT / "playbooks/chaos"
_CODE = ("agent", "orchestrator")


@dataclass(frozen=True)
class Edit:
    """One place of the code, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """How a property is broken."""

    experiment: str
    breaks: str
    tells: str
    edits: tuple[Edit, ...] = ()
    hostile: dict[str, Any] | None = None  # an activity that comes in
    after: str = ""  # this one of the method; "": first


def _action(func: str, **arguments: Any) -> dict[str, Any]:
    return {
        "type": "action",
        "name": f"hostile: {func}",
        "provider": {
            "type": "python",
            "module": "orchestrator.chaos.actions",
            "func": func,
            "arguments": arguments,
        },
    }


_NO_THAW = Edit(
    "agent/protocol.py",
    '_GO_ON_HERE = ("take_back_addresses", "unlock", "release", "thaw")',
    '_GO_ON_HERE = ("take_back_addresses", "unlock", "release")',
)

MUTANTS = [
    Mutant(
        "agent-killed-in-blackout",
        "who comes after a dead agent does not let the process go on",
        "live copies",
        (Edit("agent/successor.py", "                tree.thaw()\n", "                pass\n"),),
    ),
    Mutant(
        "agent-killed-after-commit",
        "a dead agent's commit counts as done, though its copy was not continued",
        "answering hosts",
        (
            Edit(
                "agent/protocol.py",
                'State("committed", "runs", _AGAIN, "committed")',
                'State("committed", "runs", _OVER, "committed")',
            ),
        ),
    ),
    Mutant(
        "orchestrator-killed",
        "the source's agent ends its copy when the orchestrator is gone",
        "live copies",
        (
            Edit(
                "agent/source.py",
                "        if self._link.relayed or not self._link.opened.is_set():\n",
                "        await self._host.end_process()\n"
                "        if self._link.relayed or not self._link.opened.is_set():\n",
            ),
        ),
    ),
    Mutant(
        "source-silent-after-commit",
        "the source lets its copy go on where the destination has committed",
        "packets of the source",
        (
            Edit(
                "agent/protocol.py",
                '_END_HERE = ("end_copy", "give_addresses", "unlock")',
                '_END_HERE = ("take_back_addresses", "unlock", "release", "thaw")',
            ),
        ),
    ),
    Mutant(
        "link-cut-in-doubt",
        "a source that hears nothing after the hand-over goes on by itself",
        "live copies",
        (
            Edit(
                "agent/protocol.py",
                '("handed-over", "lost"): Move("in-doubt", (), _NOTE),',
                '("handed-over", "lost"): Move("rolling-back", _GO_ON_HERE, _DECISION),',
            ),
        ),
    ),
    Mutant(
        "lossy-network",
        "a firewall resets the connections that it does not know",
        "client errors",
        hostile=_action("reset_connections", parties=["client", "destination"]),
        after="migrate",
    ),
    Mutant(
        "slow-link",
        "the source does not look how long its process stands still",
        "stall",
        (
            Edit(
                "agent/source.py",
                "call_later(self._plan.max_blackout, self._too_long)",
                "call_later(self._plan.max_blackout * 10, self._too_long)",
            ),
            Edit(
                "agent/destination.py",
                "asyncio.timeout(self._plan.max_blackout + _SLACK)",
                "asyncio.timeout(self._plan.max_blackout * 10)",
            ),
        ),
    ),
    Mutant(
        "images-disk-full",
        "a source that rolls back forgets its copy",
        "live copies",
        (_NO_THAW,),
    ),
    Mutant(
        "journal-disk-full",
        "each record of the journal wants room on the disk",
        "unexpected",
        (
            Edit(
                "agent/journal.py",
                "            if self._full:\n",
                "            if self._full or not os.statvfs(self.path).f_bavail:\n",
            ),
        ),
    ),
    Mutant(
        "record-corrupted",
        "a record is taken though its seal does not fit",
        "unexpected",
        (
            Edit(
                "agent/image/seal.py",
                "        except InvalidTag:\n            return None\n",
                "        except InvalidTag:\n            pass\n",
            ),
        ),
    ),
    Mutant(
        "journal-corrupted",
        "a journal without a line that can be read counts as one that was never written",
        "live copies",
        (
            Edit(
                "agent/history.py",
                '    return "a record before a decision is damaged" if _decision_behind(data, end) '
                "else None\n",
                "    return None\n",
            ),
            Edit(
                "agent/history.py",
                "    if not entries and (why := _why_unread(data)) is not None:\n",
                "    if (why := None) is not None:\n",
            ),
            Edit(
                "agent/recovery.py",
                "if history.role == DESTINATION and word != SETTLED:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "clocks-apart",
        "the two hosts' clocks are taken for one",
        "reported blackout",
        (Edit("agent/clock.py", "self.offset = remote - (sent + received) / 2", "pass"),),
    ),
    Mutant(
        "power-loss-in-doubt",
        "a destination that has not committed says that it has",
        "live copies",
        (
            Edit(
                "agent/protocol.py",
                'State("rolled-back", "none", _OVER, "failed")',
                'State("rolled-back", "none", _OVER, "committed")',
            ),
        ),
    ),
    Mutant(
        "drain-with-killed-host",
        "a source that rolls back forgets its copy",
        "live copies of a",
        (_NO_THAW,),
    ),
    Mutant(
        "post-copy-cut",
        "a destination whose link breaks takes the memory for complete",
        "client errors",
        (
            Edit(
                "agent/destination.py",
                '                raise PeerLost(phase="post_copy", detail="the source is gone")\n',
                "                pass\n",
            ),
        ),
    ),
]

BY_EXPERIMENT = {one.experiment: one for one in MUTANTS}


def prepare(mutant: Mutant, directory: Path) -> tuple[Path, Path]:
    """The broken code and the experiment's file, under `directory`."""
    code, file = directory / "code", directory / f"{mutant.experiment}.yaml"
    for package in _CODE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, code / package, ignore=ignored)
    for edit in mutant.edits:
        path = code / edit.file
        text = path.read_text()
        assert text.count(edit.old) == 1, (
            f"{edit.file} has {edit.old!r} {text.count(edit.old)} times"
        )
        path.write_text(text.replace(edit.old, edit.new))
    experiment = yaml.safe_load((EXPERIMENTS / file.name).read_text())
    if mutant.hostile is not None:
        names = [one["name"] for one in experiment["method"]]
        at = names.index(mutant.after) + 1 if mutant.after else 0
        experiment["method"].insert(at, mutant.hostile)
    file.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return code, file


def run(file: Path, journal: Path, code: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`migrate chaos run` of this code."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "chaos", "run", str(file), "-F", str(SSH_CONFIG),
         "--json", "--journal", str(journal)],
        cwd=code, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
