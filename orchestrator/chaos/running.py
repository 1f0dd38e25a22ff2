"""Runs one experiment with the Chaos Toolkit's own library, and says what came of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from orchestrator.chaos import session
from orchestrator.chaos.errors import (
    ChaosMissing,
    Deviated,
    ExperimentInvalid,
    LabNotClean,
    NoSession,
)
from orchestrator.chaos.experiment import lacks_session
from orchestrator.errors import Interrupted

HELD, DEVIATED, FAILED, INTERRUPTED, REFUSED = (
    "held", "deviated", "failed", "interrupted", "refused"
)  # fmt: skip
_SUFFIXES = (".yaml", ".yml", ".json")
Journal = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What an experiment came to."""

    journal: Journal
    outcome: str
    errors: tuple[AgentError, ...]  # the first is the reason

    @property
    def exit_status(self) -> int:
        return max((one.exit_status for one in self.errors), default=0)

    @property
    def title(self) -> str:
        return str(self.journal["experiment"]["title"])


def load(path: str) -> dict[str, Any]:
    """A whole and valid experiment. Raises `ChaosMissing`, `ExperimentInvalid`, `NoSession`."""
    try:
        from chaoslib.experiment import ensure_experiment_is_valid
        from chaoslib.loader import load_experiment
    except ImportError:
        raise ChaosMissing(package="chaostoolkit-lib") from None
    file = Path(path)
    if not file.is_file():
        detail = "it is no file" if file.exists() else "there is no such file"
        raise ExperimentInvalid(path=path if file.name else repr(path), detail=detail)
    if file.suffix not in _SUFFIXES:
        raise ExperimentInvalid(
            path=path, detail=f"its name ends in none of {', '.join(_SUFFIXES)}"
        )
    try:
        experiment = load_experiment(path)
        if not isinstance(experiment, dict):
            raise ValueError("it is no map" if experiment is not None else "it is empty")
        ensure_experiment_is_valid(experiment)
    except RecursionError:
        raise ExperimentInvalid(path=path, detail="it is nested too deeply") from None
    except Exception as error:  # the library looks at what is there, whatever its type
        detail = " ".join(str(error).split()) or type(error).__name__
        raise ExperimentInvalid(path=path, detail=detail[:500]) from None
    if lacks_session(experiment):
        raise NoSession()
    return experiment


def run(path: str, ssh_config: str | None, say: Callable[[str], object] | None) -> Run:
    """Run it; its rollbacks always. `say` is told of each step. Raises as `load`."""
    with _told(say):
        experiment = load(path)
        from chaoslib.experiment import run_experiment

        session.forget()
        settings = {"runtime": {"rollbacks": {"strategy": "always"}}}
        if ssh_config is not None:
            experiment.setdefault("configuration", {})["ssh_config"] = ssh_config
        journal: Journal = run_experiment(experiment, settings)
    outcome, error = _outcome(journal)
    errors = [] if error is None else [error]
    if session.uncleared:
        errors.append(LabNotClean(detail="; ".join(session.uncleared)))
    return Run(journal, outcome, tuple(errors))


def _outcome(journal: Journal) -> tuple[str, AgentError | None]:
    states = journal["steady_states"]
    if session.failure is not None:
        begun = states["before"] is not None
        return (FAILED if begun else REFUSED), session.failure
    title = str(journal["experiment"]["title"])
    for state in (states["before"], states["after"]):
        if state is not None and not state["steady_state_met"]:
            return DEVIATED, _deviated(title, state["probes"][-1])
    if journal["status"] != "completed":
        return INTERRUPTED, Interrupted(verb="chaos run")
    return HELD, None


def _deviated(title: str, probe: dict[str, Any]) -> AgentError:
    value = probe["output"]
    if probe["status"] == "failed":
        value = str(probe["exception"][-1]).strip()
    return Deviated(title=title, probe=probe["activity"]["name"], value=str(value)[:500])


@contextlib.contextmanager
def _told(say: Callable[[str], object] | None) -> Iterator[None]:
    """What the library logs, told; else only kept from being printed."""
    logger = logging.getLogger("chaostoolkit")
    handler = _Say(say) if say is not None else logging.NullHandler()
    kept = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(kept[0])
        logger.propagate = kept[1]


class _Say(logging.Handler):
    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
