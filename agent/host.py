"""What either side of a migration holds open on its host, and closes again whatever happens."""

from __future__ import annotations

import contextlib
from typing import Any

from agent.address import AddressMover
from agent.errors import ProtocolError
from agent.fault import Faults
from agent.image.records import Record
from agent.image.store import ImageStore
from agent.kernel.limits import raise_descriptors
from agent.kernel.memory import keep_freed_memory
from agent.kernel.perf import Breakpoints
from agent.netlock import apply, render
from agent.netlock.render import Connection, Listener
from agent.phases import Phases
from agent.plan import Plan
from agent.tcp import options
from agent.tcp.capture import Capture
from agent.tcp.replay import Replayer

MAX_SOCKETS = 1 << 20
MANY = 256  # sockets: from here on CRIU's ways of looking each of them up are gone round


class Host:
    """Lock, addresses, images and packets; all that takes time is opened ahead."""

    def __init__(
        self, plan: Plan, phases: Phases, faults: Faults, devices: list[str], image_limit: int
    ) -> None:
        """`devices` has this host's device for each address of the plan. Nothing of the process
        is touched, and nothing stays when it raises (`AgentError` or `OSError`)."""
        self._plan = plan
        self._phases = phases
        self._faults = faults
        self._listeners = listeners_of(plan)
        self._addresses = [one.address for one in plan.addresses]
        self._connections: set[Connection] = set()
        self._capture: Capture | None = None
        self.needs_images = False  # also when this is closed: somebody goes on with them
        raise_descriptors()
        keep_freed_memory()
        apply.warm()
        options.warm_up()
        with contextlib.ExitStack() as opened:
            opened.callback(Breakpoints().close)
            self._store = ImageStore(plan.images_dir, plan.id, image_limit)
            opened.callback(self._wipe)
            self._replayer = Replayer()
            opened.callback(self._replayer.close)
            self._movers = []
            for one, device in zip(plan.addresses, devices, strict=True):
                self._movers.append(AddressMover(one.address, one.prefixlen, device))
                opened.callback(self._movers[-1].close)
            self._open(opened)
            self._opened = opened.pop_all()

    def _wipe(self) -> None:
        if self.needs_images:
            self._store.finish()
        else:
            self._store.remove()

    def _open(self, opened: contextlib.ExitStack) -> None:
        """Open what the role needs beside it, and say how it is closed."""

    def _start_capture(self) -> None:
        if self._plan.replay:
            self._capture = Capture(self._addresses)
            self._opened.callback(self._capture.close)

    def _lock_fully(self) -> None:
        connections = sorted(self._connections)
        apply.run(render.lock(self._plan.id, connections, self._listeners, stage="full"))

    def _lock_also(self, fresh: list[Connection]) -> None:
        self._connections.update(fresh)
        apply.run(render.add_connections(self._plan.id, fresh))

    def unlock(self) -> None:
        """Idempotent. Raises `LockError`."""
        apply.run(render.unlock(self._plan.id))

    def close(self) -> None:
        """Let go of everything but the process. Idempotent."""
        self._opened.close()


def listeners_of(plan: Plan) -> list[Listener]:
    """The plan's listeners as the lock sees them; "::" without v6only has the IPv4 port, too."""
    listeners = []
    for one in plan.listeners:
        listeners.append(Listener(one.family, None if one.wildcard else one.address, one.port))
        if one.family == 6 and one.wildcard and not one.v6only:
            listeners.append(Listener(4, None, one.port))
    return list(dict.fromkeys(listeners))


def to_rows(connections: list[Connection]) -> list[Any]:
    """The connections as a record carries them."""
    return [list(one.astuple()) for one in connections]


def from_rows(record: Record) -> list[Connection]:
    """The connections of a record. Raises `ProtocolError`."""
    rows = record.get("connections")
    if not isinstance(rows, list) or len(rows) > MAX_SOCKETS:
        raise ProtocolError(detail="a record of connections without connections")
    found = []
    for row in rows:
        match row:
            case [int(family), str(local), int(port), str(remote), int(remote_port)]:
                found.append(Connection(family, local, port, remote, remote_port))
            case _:
                raise ProtocolError(detail="a malformed connection in a record")
    try:
        render.check(found)
    except ValueError as error:
        raise ProtocolError(detail=f"in a record of connections, {error!s:.200}") from error
    return found
