"""What keeps an experiment from being run, or from going on."""

from __future__ import annotations

from agent.errors import EXIT_IN_DOUBT, EXIT_REFUSED, EXIT_ROLLED_BACK, EXIT_USAGE, AgentError


class ChaosMissing(AgentError):
    code = "chaos-missing"
    template = "experiments need a package that is not installed here: {package}"
    hint_template = "pip install 'streamferry[chaos]'"
    exit_status = EXIT_REFUSED


class ExperimentInvalid(AgentError):
    code = "experiment"
    template = "{path} is no experiment that can be run: {detail}"
    hint_template = (
        "See docs/chaos.md; `migrate chaos list` has experiments, and with --activities what they "
        "are made of."
    )
    exit_status = EXIT_USAGE


class LabDown(AgentError):
    code = "lab-down"
    template = "the lab is not up: {detail}"
    hint_template = "Bring it up with `make lab`; nothing was touched."
    exit_status = EXIT_REFUSED


class LabBusy(AgentError):
    code = "lab-busy"
    template = "the lab is in use: {detail}"
    hint_template = (
        "End what runs there, or make it anew: `make lab-down lab`; nothing was touched."
    )
    exit_status = EXIT_REFUSED


class LabHostUnknown(AgentError):
    code = "lab-host"
    template = "there is no host {host} in the lab; it has {known}"
    hint_template = "Name one of these in the experiment; nothing was touched."
    exit_status = EXIT_USAGE


class WorkloadUnknown(AgentError):
    code = "chaos-workload"
    template = "{detail}"
    hint_template = "The experiment's control names its workloads; nothing was touched."
    exit_status = EXIT_USAGE


class NoSession(AgentError):
    code = "chaos-session"
    template = "the experiment has no control of the module orchestrator.chaos.control"
    hint_template = "Add one, as docs/chaos.md shows: it starts what the experiment is about."
    exit_status = EXIT_USAGE


class ActionFailed(AgentError):
    code = "chaos-action"
    template = "{detail}"
    hint_template = "The experiment was ended here, and what it had begun was undone."
    exit_status = EXIT_ROLLED_BACK


class Deviated(AgentError):
    code = "chaos-deviated"
    template = "{title}: the steady state is not met: {probe} is {value}"
    hint_template = "The journal (--journal) and the report (--report) have each step."
    exit_status = EXIT_ROLLED_BACK


class LabNotClean(AgentError):
    code = "lab-not-clean"
    template = "the experiment could not clear away all that it had begun: {detail}"
    hint_template = (
        "See `migrate doctor` for those hosts, or make the lab anew: `make lab-down lab`."
    )
    exit_status = EXIT_IN_DOUBT
