"""What an experiment asks for, checked before anything is touched. No I/O."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress

from agent.fault import parse
from orchestrator.chaos.errors import LabHostUnknown, WorkloadUnknown
from orchestrator.chaos.network import ORCHESTRATOR

_CONTROL = "orchestrator.chaos.control"
_IN_A_SESSION = {"orchestrator.chaos.actions", "orchestrator.chaos.probes"}
# Arguments that name hosts, or parties.
_NAMING = ("host", "role", "source", "destination", "to", "what", "parties")


class Setup(BaseModel):
    """The arguments of an experiment's control."""

    model_config = ConfigDict(extra="forbid")

    source: str = "src"
    destination: str = "dst"
    others: list[str] = []
    client: str = "client"
    workloads: dict[str, IPvAnyAddress] = Field(
        default={"redis": IPv4Address("10.77.0.100")}, min_length=1
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those that migrate."""
        return (self.source, self.destination, *self.others)


def activities(experiment: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a valid experiment."""
    hypothesis = experiment.get("steady-state-hypothesis") or {}
    parts = (hypothesis.get("probes"), experiment["method"], experiment.get("rollbacks"))
    return [activity for part in parts for activity in part or []]


def lacks_session(experiment: dict[str, Any]) -> bool:
    """Whether it has activities of ours, and not the control that they need."""
    modules = {str(one.get("provider", {}).get("module")) for one in activities(experiment)}
    controls = experiment.get("controls") or []
    has = any(one.get("provider", {}).get("module") == _CONTROL for one in controls)
    return bool(modules & _IN_A_SESSION) and not has


def check(experiment: dict[str, Any], setup: Setup) -> None:
    """Whether what its activities name is there. Raises `LabHostUnknown`, `WorkloadUnknown` and
    `BadFault`."""
    known = ("source", "destination", ORCHESTRATOR, setup.client, *setup.hosts)
    for activity in activities(experiment):
        provider = activity.get("provider") or {}
        if provider.get("module") not in _IN_A_SESSION:
            continue
        given = provider.get("arguments") or {}
        for name in _NAMING:
            value = given.get(name) or []
            for host in [value] if isinstance(value, str) else value:
                if host not in known and not str(host).startswith("${"):
                    raise LabHostUnknown(host=str(host), known=", ".join(known))
        for fault in given.get("faults", []):
            parse(fault)
        workload = given.get("workload")
        if workload is not None and workload not in setup.workloads:
            there = ", ".join(setup.workloads)
            detail = f"{activity['name']}: there is no workload {workload}; there is {there}"
            raise WorkloadUnknown(detail=detail)
