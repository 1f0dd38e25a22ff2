"""Finds out what a migration must know beforehand, without touching anything.

`host` and `process` are asked of the source, `host` and `destination` of the destination; the
shapes are in `agent.probe.facts`. `workloads` and `health` are for who empties a host: what runs
there, and whether it is well where it has gone (`agent.probe.running`, `agent.probe.service`).
Each call runs in a thread of its own, as it reads many files.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.errors import ProtocolError
from agent.plan import checked_images_dir, checked_pid
from agent.probe import machine, running, service, target, tree
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate

__all__ = ["destination", "health", "host", "process", "workloads"]


async def host(images_dir: str) -> HostFacts:
    """What this host is and can do; `images_dir` is where the images are to go.

    Raises `ProtocolError`.
    """
    return await asyncio.to_thread(machine.look, checked_images_dir(images_dir))


async def process(pid: int) -> ProcessFacts:
    """What the tree of `pid` consists of. Raises an error of `agent.probe.errors` or
    `agent.unended`, or `ProtocolError`."""
    return await asyncio.to_thread(tree.look, checked_pid(pid))


async def destination(process: dict[str, Any], images_dir: str) -> DestinationFacts:
    """What of this host is in the way of `process` (`ProcessFacts`).

    Raises `ProtocolError`, or an error of `agent.unended`.
    """
    facts = validate(process, ProcessFacts, "the facts of the process")
    try:
        return await asyncio.to_thread(target.look, facts)
    except (ValueError, OverflowError) as error:  # of their types, but no such thing can be
        raise ProtocolError(detail=f"in the facts of the process: {error!s:.200}") from error


async def workloads(pid_files: list[str]) -> running.Running:
    """What runs on this host, and whom the PID files name. Raises `ProtocolError`."""
    if not isinstance(pid_files, list):
        raise ProtocolError(detail="the PID files are not a list")
    return await asyncio.to_thread(running.look, pid_files)


async def health(kind: str, what: str, seconds: float) -> service.HealthFacts:
    """Whether a service of this host is well. Raises `ProtocolError`."""
    return await asyncio.to_thread(service.check, kind, what, seconds)
