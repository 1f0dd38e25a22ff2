"""Goes on where a drain was: what was on the move is ended first, by `migrate recover`'s code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agent.errors import AgentError
from orchestrator.draining import states
from orchestrator.draining.agents import Agents
from orchestrator.draining.beginning import Asked, survey_again
from orchestrator.draining.journal import Item, Journal
from orchestrator.draining.logged import Listener
from orchestrator.draining.outcome import moved_back
from orchestrator.errors import told
from orchestrator.migration.result import IN_DOUBT, MIGRATED, ROLLED_BACK, Json
from orchestrator.records import RecordDamaged, Records, is_open
from orchestrator.recovering import Recoverer, Report

Recover = Callable[[str], Awaitable[Report]]


async def resume(
    journal: Journal,
    agents: Agents,
    asked: Asked,
    records: Records,
    listener: Listener,
    recover: Recover | None = None,
    ended: Callable[[Json], None] = lambda _result: None,
) -> None:
    """Bring the journal's items to where they can be gone on with. Raises `AgentError`.

    `ended` is told the result of each migration that had none before.
    """
    ssh_config = journal.begun.ssh_config

    async def by_ssh(migration: str) -> Report:
        worker = Recoverer(ssh_config, records)
        try:
            (report,) = await worker.recover(migration)
        finally:
            for result in worker.first_ends:  # whoever began it was killed before it counted
                ended(result)
        return report

    for item in journal.items.values():
        if item.state in (states.MOVING, states.RETURNING, states.IN_DOUBT):
            await _settle(item, records, recover or by_ssh, listener)
            if item.state == states.RETURNED:
                item.error = moved_back(item.error, asked.drain.node)
            journal.note(item)
    waiting = [one for one in journal.items.values() if one.state == states.WAITING]
    if waiting:
        journal.note(*await survey_again(agents, asked, waiting, listener))


async def _settle(item: Item, records: Records, recover: Recover, listener: Listener) -> None:
    """End what was on the move; the item is in the state that follows from it."""
    back = item.moved  # it was on its way back to the node
    outcome, lost, error = await _outcome(item, records, recover, listener)
    if error is not None:
        item.error = told(error)
    if lost:
        item.state = states.LOST
    elif outcome == IN_DOUBT:
        item.state = states.IN_DOUBT
    elif outcome == MIGRATED:
        item.state = states.RETURNED if back else states.CHECKING
        item.moved = not back
        item.error = None if item.moved else item.error
    else:  # it is where it was
        item.state = states.CHECKING if back else states.WAITING
        item.error = None


async def _outcome(
    item: Item, records: Records, recover: Recover, listener: Listener
) -> tuple[str, bool, AgentError | None]:
    """(outcome, whether the copy has ended, what is still wrong) of the item's last migration."""
    if not item.migration:
        return ROLLED_BACK, False, None  # it was never begun
    try:
        record = records.get(item.migration)
    except RecordDamaged as error:
        return IN_DOUBT, False, error
    if record is None:
        return ROLLED_BACK, False, None
    if not is_open(record) and record["result"] is not None:
        return record["result"]["outcome"], False, None
    listener.note(f"{item.key}: ending migration {item.migration}, which was interrupted")
    try:
        report = await recover(item.migration)
    except AgentError as error:
        return IN_DOUBT, False, error
    if report.half_ended is not None:
        listener.note(report.half_ended.message)
    return report.ended.outcome, report.ended.lost, report.loss
