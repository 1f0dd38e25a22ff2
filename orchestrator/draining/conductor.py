"""One drain from beginning to end, or from where it was interrupted: `migrate drain` does this."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from agent.errors import AgentError, internal
from agent.plan import DEFAULT_IMAGES_DIR
from orchestrator import log
from orchestrator.draining import beginning, outcome, resuming, states
from orchestrator.draining.agents import Agents, SshAgents
from orchestrator.draining.beginning import Asked
from orchestrator.draining.drain import Drain, Make
from orchestrator.draining.journal import Item, Journal
from orchestrator.draining.logged import Listener, Logged
from orchestrator.draining.mover import Mover
from orchestrator.draining.survey import host_facts
from orchestrator.draining.window import Window, WindowOver
from orchestrator.errors import Interrupted, told
from orchestrator.playbook.model import WhenEmpty
from orchestrator.playbook.quantities import spelt
from orchestrator.records import Records

_LOOK = 1.0  # seconds between two looks for a host that restarts
Json = dict[str, Any]


class CommandFailed(AgentError):
    code = "command-failed"
    template = "{node} is empty, but `{command}` {detail}"
    hint_template = "It is `when_empty` in the playbook; {node} stays cordoned."


class NotBack(AgentError):
    code = "not-back"
    template = "{node} was not back within {within}"
    hint_template = "Look at it; once it is back: `migrate uncordon {node}`."


_GONE_ON_WITH = {NotBack.code, Interrupted.code, WindowOver.code}  # by `--resume`


class Conductor:
    """Runs one drain after another. `interrupt` may be called at any time."""

    def __init__(
        self,
        ssh_config: str | None,
        listener: Listener,
        records: Records | None = None,
        reach: Callable[[str | None], Agents] = SshAgents,
        make: Make = Mover,
        window: Window | None = None,
        ended: Callable[[Json], None] = lambda _result: None,
    ) -> None:
        """`ended` is told the result of each migration."""
        self._ssh_config, self._ended = ssh_config, ended
        self._shown, self._listener = listener, Logged(listener)
        self._records = records or Records()
        self._reach, self._make = reach, make
        self._window = window or Window()
        self._drain: Drain | None = None
        self._task: asyncio.Task[Json] | None = None
        self.interrupted = False
        self.errors: list[AgentError] = []

    def interrupt(self) -> None:
        """Begin nothing more, and undo what is on the move while that is possible."""
        if self.interrupted:
            self._listener.note("still undoing what is on the move: it is never left half done")
            return
        self.interrupted = True
        if self._drain is not None:
            self._drain.interrupt()
        elif self._task is not None:
            self._task.cancel()

    async def drain(self, asked: Asked, dry_run: bool, drain_id: str | None = None) -> Json:
        """The result as `orchestrator.draining.outcome` describes it.

        `drain_id`: the id that it is to have, for who has to know it before.
        """
        log.bind(node=asked.drain.node)
        work = self._begin(asked, dry_run, drain_id)
        return await self._guarded(asked.drain.node, work, dry_run)

    async def resume(self, drain: str) -> Json:
        """The same of one that was interrupted. Raises what `Journal.open` raises."""
        journal = Journal.open(drain)
        try:
            return await self._guarded(journal.begun.drain.node, self._resume(journal), False)
        finally:
            journal.close()

    async def _guarded(self, node: str, work: Any, dry_run: bool) -> Json:
        self._task = asyncio.create_task(work)
        try:
            await asyncio.wait({self._task})
            return self._task.result()
        except asyncio.CancelledError:
            error: AgentError = Interrupted(verb="drain")
        except AgentError as problem:
            error = problem
        except Exception as problem:
            error = internal(problem)
        finally:
            self._task = self._drain = None
        self.errors.append(error)
        return outcome.result(node, [], dry_run=dry_run, error=error)

    async def _begin(self, asked: Asked, dry_run: bool, drain_id: str | None) -> Json:
        agents = self._reach(self._ssh_config)
        node = asked.drain.node
        try:
            items = await beginning.look(agents, asked, self._listener)
            for item in items:
                self._listener.changed(item)
            if dry_run or (items and all(one.state == states.IMMOVABLE for one in items)):
                return outcome.result(node, items, dry_run=dry_run)
            if not items:
                if asked.drain.cordon:
                    await beginning.cordon(agents, asked.drain)
                result = outcome.result(node, [], cordoned=asked.drain.cordon)
                return await self._when_empty(agents, asked, result)
            journal = await beginning.begin(
                agents, asked, items, self._ssh_config_path(), self._listener, drain_id
            )
            try:
                return await self._run(journal, agents, asked)
            finally:
                journal.close()
        finally:
            await agents.close()

    async def _resume(self, journal: Journal) -> Json:
        begun = journal.begun
        self._ssh_config = self._ssh_config or begun.ssh_config
        agents = self._reach(self._ssh_config)
        asked = Asked(begun.drain, begun.defaults, begun.hosts)
        try:
            await resuming.resume(
                journal, agents, asked, self._records, self._listener, ended=self._ended
            )
            return await self._run(journal, agents, asked)
        finally:
            await agents.close()

    def _ssh_config_path(self) -> str | None:
        """As it is found from anywhere, for `--resume`."""
        config = self._ssh_config
        return os.path.abspath(config) if config and config != "none" else config

    async def _run(self, journal: Journal, agents: Agents, asked: Asked) -> Json:
        log.bind(drain=journal.begun.id, node=journal.begun.drain.node)
        self._listener.note(f"drain {journal.begun.id}")
        self._drain = Drain(
            journal, agents, self._records, self._shown, self._make, self._window, self._ended
        )
        if self.interrupted:
            self._drain.interrupt()
        await self._drain.run()
        items: list[Item] = list(journal.items.values())
        error = self._drain.trouble
        result = outcome.result(
            journal.begun.drain.node,
            items,
            drain=journal.begun.id,
            cordoned=journal.begun.drain.cordon,
            interrupted=self._drain.interrupted,
            error=error,
        )
        if error is not None:
            self.errors.append(error)
            return result
        if journal.over or any(one.state not in states.OVER - {states.IN_DOUBT} for one in items):
            return result
        result = await self._when_empty(agents, asked, result, journal)
        if (result["error"] or {}).get("code") not in _GONE_ON_WITH:
            journal.end()
        return result

    # --- once it is empty

    async def _when_empty(
        self, agents: Agents, asked: Asked, result: Json, journal: Journal | None = None
    ) -> Json:
        then = asked.drain.when_empty
        if then is None or result["outcome"] not in (outcome.DRAINED, outcome.NOTHING):
            return result
        try:
            await self._restart(agents, asked.drain.node, then, journal)
        except AgentError as error:
            self.errors.append(error)
            return {**result, "outcome": outcome.INCOMPLETE, "error": told(error)}
        return {**result, "cordoned": then.back_within is None}

    async def _restart(
        self, agents: Agents, node: str, then: WhenEmpty, journal: Journal | None
    ) -> None:
        """The command is never run twice: it may have restarted a node that is in use again."""
        if journal is not None and journal.command is not None:
            before = journal.command["identity"]
            if then.back_within is None and not journal.command["run"]:
                detail = "was about to be run when this was interrupted: see whether it was"
                raise CommandFailed(node=node, command=" ".join(then.run), detail=detail)
        else:
            self._window.check()
            if self.interrupted:
                raise Interrupted(verb="drain")
            before = (await host_facts(agents, node, DEFAULT_IMAGES_DIR))["identity"]
            if journal is not None:
                journal.note_command(before, False)
            self._listener.note(f"{node} is empty: {' '.join(then.run)}")
            await _command(node, then.run, restarts=then.back_within is not None)
            if journal is not None:
                journal.note_command(before, True)
        if then.back_within is not None:
            await self._back(agents, node, before, then.back_within)

    async def _back(self, agents: Agents, node: str, before: str, within: float) -> None:
        """Wait until the node has restarted, and open it again. Raises `AgentError`."""
        now = asyncio.get_running_loop().time
        end = now() + within
        while now() < end and not self.interrupted:
            try:
                async with asyncio.timeout(max(end - now(), 0.1)):
                    facts = await host_facts(agents, node, DEFAULT_IMAGES_DIR)
                if facts["identity"] != before:
                    await agents.ask(node, lambda agent: agent.uncordon())
                    self._listener.note(f"{node} is back, and open again")
                    return
            except (AgentError, TimeoutError):
                pass  # it is on its way down or up
            await asyncio.sleep(_LOOK)
        raise (
            Interrupted(verb="drain")
            if self.interrupted
            else NotBack(node=node, within=spelt(within))
        )


async def _command(node: str, words: list[str], *, restarts: bool) -> None:
    """Run a command on this machine. Raises `CommandFailed`."""
    shown = " ".join(words)
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "STREAMFERRY_NODE": node},
        )
    except OSError as error:
        detail = f"cannot be run: {error.strerror or error}"
        raise CommandFailed(node=node, command=shown, detail=detail) from error
    _, errors = await process.communicate()
    # A host that goes down takes the connection of whoever told it to along (ssh: 255).
    if process.returncode not in ((0, 255) if restarts else (0,)):
        last = (errors.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        detail = f"ended with status {process.returncode}{f': {last}' if last else ''}"
        raise CommandFailed(node=node, command=shown, detail=detail)
