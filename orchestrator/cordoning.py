"""Cordon hosts and open them again, each by its own agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent.errors import AgentError
from orchestrator.agent_client import AgentClient
from orchestrator.inventory import parse_target
from orchestrator.recovering import Recoverer

Rows = list[dict[str, Any]]


async def cordon(hosts: tuple[str, ...], ssh_config: str | None, reason: str) -> Rows:
    """{"host", "since", "reason"} of each. Raises `AgentError`."""

    async def one(host: str, agent: AgentClient) -> dict[str, Any]:
        return {"host": host, **await agent.cordon(reason)}

    return await _each(hosts, ssh_config, one)


async def uncordon(hosts: tuple[str, ...], ssh_config: str | None) -> Rows:
    """{"host", "was_cordoned"} of each. Raises `AgentError`."""

    async def one(host: str, agent: AgentClient) -> dict[str, Any]:
        return {"host": host, "was_cordoned": await agent.uncordon()}

    return await _each(hosts, ssh_config, one)


async def _each(
    hosts: tuple[str, ...],
    ssh_config: str | None,
    work: Callable[[str, AgentClient], Awaitable[dict[str, Any]]],
) -> Rows:
    """Nothing is done at any host before all are reached."""
    for host in hosts:
        parse_target(host)
    reacher = Recoverer(ssh_config)
    try:
        works = []
        for host, agent in zip(hosts, await reacher.reach(*hosts), strict=True):
            if isinstance(agent, AgentError):
                raise agent
            works.append((host, agent))
        return list(await asyncio.gather(*(work(*one) for one in works)))
    finally:
        await reacher.close()
