"""Clears what is safe. Blocks, also for a CRIU that has not come to its end (up to a minute).

First what recovery can settle alone; then what is orphaned. All is looked at again under the
journal's lock before it is touched, so that whoever has begun meanwhile keeps what is its.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.address import AddressMover
from agent.errors import AgentError
from agent.journal import Journal
from agent.kernel import proc
from agent.leftovers import facts, journals
from agent.leftovers.facts import Fixed
from agent.leftovers.looking import look
from agent.leftovers.processes import Processes, tracees
from agent.leftovers.seen import Leftover, Places
from agent.netlock import apply, render
from agent.protocol import DESTINATION, SOURCE, TABLES, Found
from agent.recovery import forget, settle

_PATIENCE = 3.0  # seconds for a process that is asked to end, and for one that is killed


class LeftoverStays(AgentError):
    code = "leftover"
    template = "{name} was not cleared: {detail}"
    hint_template = "Look again with `migrate doctor`."


def fix(places: Places) -> Fixed:
    """Clear what is safe; what was cleared, why something was not, and what is left then."""
    before = look(places)
    safe = [one for one in before.leftovers if one.safe]
    errors: list[str] = []
    for one in safe:
        if one.kind == facts.ADDRESS:  # while the journal still says whose it is
            _try(errors, one.name, _give_up, one, places)
    known = {(one.migration, one.role) for one in safe if one.kind == facts.JOURNAL}
    for migration in sorted({one.migration for one in safe} - {""}):
        for role in (SOURCE, DESTINATION):
            sure = (migration, role) in known
            _try(errors, f"migration {migration}", _settle, migration, role, sure, places)
    for one in safe:
        if one.kind in _STEPS:
            _try(errors, one.name, _STEPS[one.kind], one, places)
    after = look(places)
    left = {one.key for one in after.leftovers}
    cleared = [one.to_wire() for one in before.leftovers if one.key not in left]
    return Fixed(cleared=cleared, errors=errors, left=after.to_wire())


def _try(errors: list[str], name: str, step: Callable[..., None], *arguments: object) -> None:
    """What cannot be cleared keeps nothing else from being."""
    try:
        step(*arguments)
    except (AgentError, OSError) as error:
        detail = error.message if isinstance(error, AgentError) else str(error)
        errors.append(LeftoverStays(name=name, detail=detail).message)


def _settle(migration: str, role: str, sure: bool, places: Places) -> None:
    """`sure`: a journal without a line is that of an agent which had done nothing."""
    with _locked(migration, role, places.journals) as journal:
        if journal is None or not (journal.history.entries or sure):
            return
    settle(migration, role, None, places.journals)
    if role == SOURCE:  # that its copy is lost, where it is, has been told by the finding
        forget(migration, places.journals)


@contextlib.contextmanager
def _locked(migration: str, role: str, directory: Path) -> Iterator[Journal | None]:
    """A journal that can be gone by, with its lock. Raises `JournalBusy`, `LeftoverStays`."""
    path = directory / f"{migration}-{role}"
    for one in journals.look(directory):
        if one.path == str(path) and one.problem not in ("", journals.EMPTY):
            raise LeftoverStays(name=str(path), detail=f"it is {one.problem}")
    journal = Journal.open(migration, role, directory)
    try:
        yield journal
    finally:
        if journal is not None:
            journal.close()


@contextlib.contextmanager
def _over(migration: str, places: Places) -> Iterator[None]:
    """While this lasts nobody goes on with the migration, of which nothing more is to be done
    here. Raises `JournalBusy`, `LeftoverStays`."""
    for agent in Processes(places).agents:
        if agent.migration == migration:
            detail = f"its agent, PID {agent.pid}, lives"
            raise LeftoverStays(name=f"migration {migration}", detail=detail)
    with contextlib.ExitStack() as held:
        for role in (SOURCE, DESTINATION):
            journal = held.enter_context(_locked(migration, role, places.journals))
            if journal is None or not journal.history.entries:
                continue
            state = journal.history.state
            if TABLES[role].states[state].found is not Found.OVER:
                raise LeftoverStays(name=f"migration {migration}", detail=f"it is {state}")
        yield


def _give_up(one: Leftover, places: Places) -> None:
    """The address of a source whose destination has committed: it is not to answer for it."""
    with _locked(one.migration, SOURCE, places.journals) as journal:
        if journal is None or journal.history.state not in ("committed", "migrated"):
            raise LeftoverStays(name=one.name, detail="its journal does not say so any more")
        assert one.held is not None
        with contextlib.closing(AddressMover(*one.held)) as mover:
            mover.remove()


def _table(one: Leftover, places: Places) -> None:
    with _over(one.migration, places):
        apply.run(render.unlock(one.migration))
        apply.run(render.unlock_time_waits(one.migration))


def _images(one: Leftover, places: Places) -> None:
    with _over(one.migration, places):
        path = Path(one.name)
        if path.is_symlink() or path.name != one.migration:
            raise LeftoverStays(name=one.name, detail="it is not a directory of ours")
        if path.exists():
            shutil.rmtree(path)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _agent(one: Leftover, places: Places) -> None:
    found = {agent.pid: agent for agent in Processes(places).agents}.get(one.pid)
    if found is not None and found.born == one.born and not found.migration:
        _end(one, signal.SIGTERM)


def _guardian(one: Leftover, places: Places) -> None:
    found = {other.pid: other for other in Processes(places).guardians}.get(one.pid)
    if found is None or found.born != one.born or found.watched:
        return
    with contextlib.suppress(LeftoverStays), _locked(one.migration, one.role, places.journals):
        pass  # raises `JournalBusy` where it is at work
    _end(one, signal.SIGKILL)


def _criu(one: Leftover, places: Places) -> None:
    processes = Processes(places)
    found = {other.pid: other for other in processes.criu}.get(one.pid)
    if found is None or found.born != one.born:
        return
    if found.serving or tracees(processes.pids).get(one.pid):
        raise LeftoverStays(name=one.name, detail="it holds a process")
    _end(one, signal.SIGKILL)


def _end(one: Leftover, first: signal.Signals) -> None:
    """Ask it or kill it; who does not go when asked is killed."""
    try:
        pidfd = os.pidfd_open(one.pid)
    except ProcessLookupError:
        return
    try:
        if proc.born(one.pid) != one.born:
            return
        for number in dict.fromkeys((first, signal.SIGKILL)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], _PATIENCE)[0]:
                return
        raise LeftoverStays(name=one.name, detail="it does not end after SIGKILL")
    finally:
        os.close(pidfd)


_STEPS: dict[str, Callable[[Leftover, Places], None]] = {
    facts.TABLE: _table,
    facts.IMAGES: _images,
    facts.AGENT: _agent,
    facts.GUARDIAN: _guardian,
    facts.CRIU: _criu,
}
