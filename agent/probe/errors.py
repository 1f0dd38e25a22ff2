"""Why a process cannot be looked at, or must not be moved at all."""

from __future__ import annotations

from agent.errors import EXIT_REFUSED, AgentError


class NoSuchProcess(AgentError):
    code = "no-such-process"
    template = "there is no process {pid}"
    hint_template = "Look for its PID with `pgrep` or `ps` on the source host."
    exit_status = EXIT_REFUSED


class NotAProcess(AgentError):
    code = "not-a-process"
    template = "{pid} is a thread of process {process}"
    hint_template = "Give the PID of the process, {process}."
    exit_status = EXIT_REFUSED


class KernelThread(AgentError):
    code = "kernel-thread"
    template = "process {pid} ({comm}) is a kernel thread"
    hint_template = "Only processes of user space can move; check the PID."
    exit_status = EXIT_REFUSED


class AgentItself(AgentError):
    """The agent, or one of its ancestors: to freeze it would freeze the migration."""

    code = "agent-itself"
    template = "process {pid} ({comm}) is the agent of this migration, or started it"
    hint_template = (
        "Streamferry cannot move its own agent, nor the sshd or init above it; check the PID."
    )
    exit_status = EXIT_REFUSED


class Zombie(AgentError):
    code = "zombie"
    template = "process {pid} ({comm}) has ended and waits for its parent to take notice"
    hint_template = "There is nothing left of it to move; check the PID."
    exit_status = EXIT_REFUSED


class NotPermitted(AgentError):
    code = "not-permitted"
    template = "process {pid} may not be looked at: {detail}"
    hint_template = (
        "Log in to the source host as root, or as a user with CAP_SYS_PTRACE and CAP_SYS_ADMIN."
    )
    exit_status = EXIT_REFUSED
