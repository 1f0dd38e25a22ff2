"""What `migrate schedule` refuses."""

from __future__ import annotations

from agent.errors import EXIT_REFUSED, EXIT_USAGE, AgentError


class StoreDamaged(AgentError):
    code = "schedule-damaged"
    template = "the store of schedules {path} cannot be gone by: {detail}"
    hint_template = (
        "Move it away, or name another with --store. What it had at work is in "
        "`migrate drain --resume`; schedules then begin anew, and nothing is made up for."
    )
    exit_status = EXIT_REFUSED


class StoreUnwritten(AgentError):
    code = "schedule-unwritten"
    template = "the store of schedules {path} cannot be used: {detail}"
    hint_template = "See to its directory, its rights and its free room, or name another: --store."
    exit_status = EXIT_REFUSED


class ServedAlready(AgentError):
    code = "schedule-served"
    template = "{path} is served already, by process {pid}"
    hint_template = "End that one first, or name another store with --store."
    exit_status = EXIT_REFUSED


class NotServed(AgentError):
    code = "schedule-not-served"
    template = "nobody serves {path}: {name} would not be run"
    hint_template = "Start `migrate schedule serve`, or do it now: `migrate drain --playbook`."
    exit_status = EXIT_REFUSED


class NothingScheduled(AgentError):
    code = "nothing-scheduled"
    template = "{path} has nothing to serve: {detail}"
    hint_template = "A playbook is served that has `schedule:`; see docs/schedule.md."
    exit_status = EXIT_USAGE


class SameName(AgentError):
    code = "schedule-name"
    template = "{first} and {second} would both be called {name}"
    hint_template = "A schedule has the name of its file: rename one."
    exit_status = EXIT_USAGE


class UnknownSchedule(AgentError):
    code = "unknown-schedule"
    template = "no schedule is named {name}"
    hint_template = "{hint}"
    exit_status = EXIT_REFUSED


class CannotRun(AgentError):
    code = "schedule-cannot-run"
    template = "{name} cannot be run: {detail}"
    hint_template = "`migrate schedule list` says how each stands."
    exit_status = EXIT_REFUSED
