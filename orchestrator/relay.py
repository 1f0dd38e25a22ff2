"""Where the two agents do not reach each other, their link goes through here."""

from __future__ import annotations

from typing import Any

from orchestrator.agent_client import AgentClient


async def relay(agent: AgentClient, other: AgentClient, data: dict[str, Any]) -> None:
    """Forward what `agent` sends; what this waits for holds up the reading from it."""
    if not other.gone:
        await other.send_event("relay", data)
    elif data.get("data"):
        await agent.send_event("relay", {"data": b""})
