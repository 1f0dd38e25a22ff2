"""Finds what an interrupted migration, ours or one by CRIU, has left on this host; clears the safe.

`look` touches nothing; `fix` clears what the protocol leaves to this host alone, and what is of no
migration any more. Both run in a thread of their own, as they read all of /proc.
"""

from __future__ import annotations

import asyncio
import os

from agent.errors import EXIT_REFUSED, AgentError
from agent.kernel import proc
from agent.leftovers.facts import Fixed, Look
from agent.leftovers.seen import Places
from agent.probe import capabilities

_NEEDED = ("CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SYS_PTRACE")


class MayNotLook(AgentError):
    code = "may-not-look"
    template = "leftovers cannot be looked for by user {uid}, who lacks {names}"
    hint_template = "Log in to the host as root."
    exit_status = EXIT_REFUSED


async def look(places: Places | None = None) -> Look:
    """What is left over. Raises `MayNotLook`."""
    from agent.leftovers import looking

    _allowed()
    return (await asyncio.to_thread(looking.look, places or Places())).to_wire()


async def fix(places: Places | None = None) -> Fixed:
    """Clear what is safe. Raises `MayNotLook`."""
    from agent.leftovers import clearing

    _allowed()
    return await asyncio.to_thread(clearing.fix, places or Places())


def _allowed() -> None:
    status = proc.status(os.getpid())
    lacking = capabilities.missing(int(status["CapEff"], 16), _NEEDED)
    if lacking:
        raise MayNotLook(uid=int(status["Uid"].split()[1]), names=", ".join(lacking))
