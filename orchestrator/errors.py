"""Errors of the orchestrator's own side: reaching a host and starting its agent.

They share the base of the agents' errors, so that one table gives every code its message,
hint and exit status.
"""

from __future__ import annotations

import importlib
import pkgutil

import agent
import orchestrator
from agent import errors as agent_errors
from agent.errors import EXIT_IN_DOUBT, EXIT_REFUSED, EXIT_ROLLED_BACK, EXIT_USAGE, AgentError


class HostError(AgentError):
    """A host cannot take part; nothing was touched."""

    code = "host"
    template = "{host}: {detail}"
    hint_template = "Try `ssh {host} true`."
    exit_status = EXIT_REFUSED


class HostUnreachable(HostError):
    code = "unreachable"
    template = "{host} cannot be reached: {detail}"
    hint_template = "Check the name, the port and the network: `ssh {host} true` must work."


class HostKeyUnknown(HostError):
    code = "host-key-unknown"
    template = "the host key of {host} ({address}) is not known: it shows {fingerprint}"
    hint_template = (
        "Compare the fingerprint with the host's own, then add it to {files} "
        "(`ssh {host}` asks for it). Streamferry never accepts a key by itself."
    )


class HostKeyChanged(HostError):
    code = "host-key-changed"
    template = "the host key of {host} ({address}) is not the one that is known: {detail}"
    hint_template = (
        "Someone may be listening in. Where the host was reinstalled, take the old key out "
        "of {files} with `ssh-keygen -R` and add the new one."
    )


class HostKeyRevoked(HostError):
    code = "host-key-revoked"
    template = "the host key of {host} ({address}) is revoked in {files}"
    hint_template = "Give the host a new key; a revoked one must not be used."


class PermissionRefused(HostError):
    code = "permission-denied"
    template = "{host} refused the login of {user}: {detail}"
    hint_template = "Give the user and key in the ssh configuration, or load the key in ssh-agent."


class SshConfigInvalid(HostError):
    code = "ssh-config"
    template = "the ssh configuration for {host} cannot be used: {detail}"
    hint_template = "Correct the file, or name another with -F."


class PythonMissing(HostError):
    code = "python-missing"
    template = "{host} has no python3 on its path"
    hint_template = "Install python3 (3.11 or newer) on {host}."


class PythonTooOld(HostError):
    code = "python-too-old"
    template = "python3 on {host} is {version}, 3.11 or newer is needed"
    hint_template = "Install a newer python3 on {host}."


class ModulesMissing(HostError):
    code = "modules-missing"
    template = "python3 on {host} lacks {modules}"
    hint_template = (
        "Install them on {host}; in Debian: "
        "apt install python3-msgpack python3-pyroute2 python3-asyncssh python3-protobuf"
    )


class AgentDied(HostError):
    code = "agent-died"
    template = "the agent on {host} ended: {detail}"
    hint_template = "See its last words with -v; `ssh {host} python3 --version` must work."


class AgentGarbled(HostError):
    code = "agent-garbled"
    template = "{host} sends what is not our protocol: {detail}"
    hint_template = (
        "Check that nothing on {host} prints to a non-interactive login, "
        "and that its user may run commands."
    )


class AgentSilent(HostError):
    code = "agent-silent"
    template = "the agent on {host} did not report within {seconds} s"
    hint_template = "Look at {host}: is it up, and can it still be reached?"


class UsageProblem(AgentError):
    code = "usage"
    template = "{detail}"
    hint_template = "See `migrate --help`."
    exit_status = EXIT_USAGE


class Interrupted(AgentError):
    """A verb that moves nothing was ended by a signal."""

    code = "interrupted"
    template = "`migrate {verb}` was interrupted"
    hint_template = "Run it again: what it has done so far holds."
    exit_status = EXIT_REFUSED


class OutcomeUnknown(AgentError):
    """Neither host could say which of them has the process."""

    code = "in-doubt"
    template = "it is not known where the process is: {detail}"
    hint_template = (
        "Run `migrate recover` as soon as both {source} and {destination} can be reached; until "
        "then leave the copies of process {pid} as they are: it lets only one run."
    )
    exit_status = EXIT_IN_DOUBT


class AgentLost(AgentError):
    """An agent was lost, and what it had begun has been undone since: nothing is in doubt."""

    code = "agent-lost"
    template = "an agent was lost, and the migration was undone: {detail}"
    hint_template = "Process {pid} was left to {source}; run the migration again."
    exit_status = EXIT_ROLLED_BACK


class MemoryMissing(AgentError):
    """The process runs, and the link by which its memory comes was lost."""

    code = "memory-missing"
    template = "process {pid} runs at {destination}, and memory of it is still at {source}"
    hint_template = (
        "Run `migrate recover` when the two reach each other; until then it stands still wherever "
        "it needs that memory, and the frozen copy at {source} must stay as it is."
    )
    exit_status = EXIT_IN_DOUBT


def told(error: AgentError) -> dict[str, str]:
    """{"code", "message", "hint"}: an error as JSON has it."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def load_error_classes() -> None:
    """Import every module of both packages, so that each error code has its class.

    Only done when a code is met that is not known yet. A module that cannot be loaded here
    (libnftables may be missing at the orchestrator) is passed over.
    """
    for package in (agent, orchestrator):
        prefix = f"{package.__name__}."
        for module in pkgutil.walk_packages(package.__path__, prefix, onerror=lambda _name: None):
            if module.name == f"{prefix}__main__":
                continue
            try:
                importlib.import_module(module.name)
            except (ImportError, OSError, AttributeError):
                continue


def from_wire(wire: object) -> AgentError:
    """`agent.errors.from_wire`, with every class known."""
    code = wire.get("code") if isinstance(wire, dict) else None
    if isinstance(code, str) and not agent_errors.is_known(code):
        load_error_classes()
    return agent_errors.from_wire(wire)
