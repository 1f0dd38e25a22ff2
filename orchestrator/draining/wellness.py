"""Is a workload well on a host? Asked of the host's agent until it is, or the time is over."""

from __future__ import annotations

import asyncio

from agent.errors import AgentError
from agent.probe.service import LONGEST
from orchestrator.draining.agents import Agents
from orchestrator.playbook.model import Health
from orchestrator.playbook.quantities import spelt

ATTEMPT = 5.0  # seconds for one attempt, where there are so many
_SHORT, _LONG = 0.1, 2.0  # seconds between attempts


class Unwell(AgentError):
    code = "unwell"
    template = "it was not well on {host} within {within}: {detail}"
    hint_template = "Look at it there; the check is `health` in the playbook."


async def await_well(agents: Agents, host: str, health: Health, address: str) -> Unwell | None:
    """None once it is well. `address`: the workload's own, "" without one."""
    now = asyncio.get_running_loop().time
    kind, what = _question(health, address)
    end, pause, detail = now() + health.within, _SHORT, "it was never asked"
    while (left := end - now()) > 0:
        seconds = max(min(left, ATTEMPT, LONGEST), 0.05)
        try:
            async with asyncio.timeout(left + 1):
                found = await agents.ask(
                    host,
                    lambda agent, s=seconds: agent.health(kind, what, s),  # type: ignore[misc]
                )
            if found["healthy"]:
                return None
            detail = found["detail"]
        except AgentError as error:
            detail = error.message
        except TimeoutError:
            detail = f"{host} does not answer"
        await asyncio.sleep(min(pause, max(end - now(), 0)))
        pause = min(pause * 2, _LONG)
    return Unwell(host=host, within=spelt(health.within), detail=detail)


def _question(health: Health, address: str) -> tuple[str, str]:
    if health.tcp is not None:
        return "tcp", f"{health.tcp.address or address or '127.0.0.1'} {health.tcp.port}"
    if health.http is not None:
        return "http", health.http
    return "command", health.command or "false"
