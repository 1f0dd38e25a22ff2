"""One agent a host, for as long as a drain takes: it looks and asks, and never moves anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from agent.errors import AgentError
from orchestrator.agent_client import AgentClient
from orchestrator.errors import HostError
from orchestrator.inventory import config_files, parse_target
from orchestrator.transport import open_agent

_T = TypeVar("_T")


class Agents(Protocol):
    """What a drain needs of its hosts."""

    async def ask(self, host: str, call: Callable[[AgentClient], Awaitable[_T]]) -> _T:
        """Have a call made at a host. Raises `AgentError`."""
        ...

    async def close(self) -> None: ...


class SshAgents:
    """Agents that are reached when they are first asked, and again where one has gone."""

    def __init__(self, ssh_config: str | None) -> None:
        self._config = config_files(ssh_config)
        self._clients: dict[str, AgentClient] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ask(self, host: str, call: Callable[[AgentClient], Awaitable[_T]]) -> _T:
        """What only looks is asked once more where the agent was lost. Raises `AgentError`."""
        client = await self._reach(host)
        try:
            return await call(client)
        except HostError:
            if not client.gone:
                raise
        return await call(await self._reach(host))

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(one.close() for one in clients), return_exceptions=True)

    async def _reach(self, host: str) -> AgentClient:
        async with self._locks[host]:
            client = self._clients.get(host)
            if client is not None and not client.gone:
                return client
            if client is not None:
                with contextlib.suppress(AgentError):
                    await client.close()
            client = AgentClient(await open_agent(parse_target(host), self._config))
            try:
                await client.start()
            except BaseException:
                await client.close()
                raise
            self._clients[host] = client
            return client
