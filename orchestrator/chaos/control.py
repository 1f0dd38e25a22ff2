"""The control that gives an experiment its session in the lab: workloads, clients, and their end.

    controls:
      - name: lab
        provider:
          type: python
          module: orchestrator.chaos.control
          arguments: {source: src, destination: dst, workloads: {redis: 10.77.0.100}}

All arguments have defaults (`experiment.Setup`). The configuration may have `ssh_config`.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from chaoslib.exceptions import InterruptExecution, InvalidActivity
from pydantic import ValidationError

from agent.errors import AgentError
from orchestrator.chaos import session
from orchestrator.chaos.errors import ActionFailed
from orchestrator.chaos.experiment import Setup, check

SSH_CONFIG = "lab/ssh_config"
_logger = logging.getLogger("chaostoolkit")
_guard = contextlib.ExitStack()  # what keeps signals out from the rollbacks on
_rolling_back = False


def validate_control(control: dict[str, Any]) -> None:
    """Raises `InvalidActivity`."""
    try:
        Setup.model_validate(control["provider"].get("arguments") or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidActivity(f"control {control['name']}: {where}: {first['msg']}") from None


def before_experiment_control(
    context: Any, configuration: dict[str, Any] | None = None, **arguments: Any
) -> None:
    """Look whether the lab can be used, then start the workloads and their clients."""
    ssh_config = Path((configuration or {}).get("ssh_config") or SSH_CONFIG)
    setup = Setup.model_validate(arguments)
    try:
        try:
            check(context, setup)
        except AgentError as error:
            session.failed(error)
            raise
        session.open_session(setup, ssh_config)
    except AgentError as error:
        raise InterruptExecution(f"{error.message} {error.hint}") from None


def after_activity_control(context: Any, state: Any, **arguments: Any) -> None:
    """What could not be done at all is no experiment: it ends here, and is rolled back."""
    if _rolling_back or context.get("type") != "action" or not isinstance(state, dict):
        return
    if state.get("status") == "failed":
        said = str((state.get("exception") or ["it failed"])[-1]).strip()
        detail = f"{context['name']}: {said.rpartition('Failed: ')[2]}"
        session.failed(ActionFailed(detail=detail))
        raise InterruptExecution(detail)


def before_rollback_control(context: Any, **arguments: Any) -> None:
    """From here on nobody interrupts."""
    global _rolling_back
    _rolling_back = True
    _guard.enter_context(session.undisturbed())


def cleanup_control() -> None:
    """Whatever has happened: end all that was begun."""
    global _rolling_back
    try:
        session.close_session()
    finally:
        _rolling_back = False
        _guard.close()
    for one in session.uncleared:
        _logger.error(f"left: {one}")
