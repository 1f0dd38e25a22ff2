"""Finds out what a migration must know beforehand, without touching anything.

`host` and `process` are asked of the source, `host` and `destination` of the destination; the
shapes are in `agent.probe.facts`. Each call runs in a thread of its own, as it reads many files.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.probe import machine, target, tree
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate

__all__ = ["destination", "host", "process"]


async def host(images_dir: str) -> HostFacts:
    """What this host is and can do; `images_dir` is where the images are to go."""
    return await asyncio.to_thread(machine.look, images_dir)


async def process(pid: int) -> ProcessFacts:
    """What the tree of `pid` consists of. Raises an error of `agent.probe.errors`."""
    return await asyncio.to_thread(tree.look, pid)


async def destination(process: dict[str, Any], images_dir: str) -> DestinationFacts:
    """What of this host is in the way of `process` (`ProcessFacts`). Raises `ProtocolError`."""
    facts = validate(process, ProcessFacts, "the facts of the process")
    return await asyncio.to_thread(target.look, facts)
