"""Does for a dead agent what the protocol still wants of it, from its journal and the kernel alone.

Each step is one action of `agent.protocol`, may be done twice, and does nothing where there is
nothing to do. What only the dead agent knew is lost: packets captured during the blackout are not
replayed (their peers send them again).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from agent.address import AddressError, AddressMover
from agent.freeze import Tree, thread_states
from agent.history import History
from agent.kernel import proc, uapi
from agent.memory import missing
from agent.memory.missing import Missing
from agent.netlock import apply, render
from agent.plan import Plan
from agent.protocol import DESTINATION, SOURCE
from agent.tcp import options
from agent.tcp.opening import peer_name
from agent.tcp.option_readings import Recorded
from agent.tcp.replay import Replayer
from agent.tcp.restoring import leave_repair, release
from agent.tcp.steal import socket_descriptors, steal
from agent.tcp.stream import Stream

_CRIU_PATIENCE = 60.0  # seconds for a CRIU whose agent has died to come to its end
_POLL = 0.01
_PROBES = (0.1, 0.3)  # seconds after the first window probe, as it may have been lost
_MASK = 0xFFFFFFFF


def remembered(streams: Iterable[Stream]) -> dict[str, Any]:
    """What the release of restored streams needs to know: {"streams": rows, "common": options}.

    Established ones need their options alone, and most have the same: those are said once. Without
    the queues, whose bytes are in the kernel by then.
    """
    plain: dict[str, list[Stream]] = {}
    alike: list[Stream] = []  # as the last one: to compare is cheaper than to look up
    rows = []
    for stream in streams:
        if not stream.has_peer:
            continue
        if stream.state == uapi.TCP_ESTABLISHED:
            if not alike or alike[0].options != stream.options:
                alike = plain.setdefault(repr(stream.options), [])
            alike.append(stream)
        else:
            rows.append(_row(stream))
    most = max(plain.values(), key=len, default=[])
    rows += [_row(one) for others in plain.values() if others is not most for one in others]
    return {"streams": rows, "common": [list(one) for one in most[0].options] if most else []}


def _row(stream: Stream) -> list[Any]:
    return dataclasses.replace(
        stream,
        receive_seq=(stream.receive_seq + len(stream.receive_queue)) & _MASK,
        receive_queue=b"",
        send_queue=b"",
        unsent=0,
        urgent=0,
    ).to_wire()


def _plain(name: tuple[Any, ...]) -> tuple[str, int]:
    """Address and port, as `Stream` has them: without a scope."""
    return str(name[0]).partition("%")[0], int(name[1])


def _nothing_in(path: Path) -> bool:
    with path.open("rb") as file:
        return next(Missing(file.fileno()).ranges(), None) is None


def _lives(pid: int, born: int) -> bool:
    """Whether this very process does: one that was killed is there until its parent has asked."""
    return proc.born(pid) == born and not set(thread_states(pid).values()) <= {"Z", "X"}


class Successor:
    """One role's actions on this host. Blocks; not for the blackout."""

    def __init__(self, history: History) -> None:
        """Raises `ProtocolError` where the journal has no plan, or none that is valid."""
        self._facts = history.facts
        self._role = history.role
        self.plan = Plan.from_wire(self._facts.get("plan"))
        self._history = history
        self.same_boot = self._facts.get("boot") == proc.boot_id()
        self._peer_asleep: list[socket.socket] = []
        self._common: list[Recorded] = []  # options of what no row tells of

    def do(self, action: str) -> None:
        """One action of the table; those that only tell somebody something do nothing."""
        if not action.startswith("say_"):
            step: Callable[[], None] = getattr(self, action)
            step()

    # --- the process

    @property
    def living(self) -> list[int]:
        """The PIDs of this host's copy."""
        if not self.same_boot:
            return []
        if (births := self._facts.get("births")) is not None:  # what was frozen, or restored
            return [pid for pid, when in births if when and _lives(pid, when)]
        if self._role == SOURCE:
            born = self._facts.get("born")
            return self._members() if born and _lives(self.plan.pid, born) else []
        began = self._history.entered("restoring")
        since = int(began.facts.get("ticks", 0)) if began is not None else 0
        return [pid for pid in self.plan.tree if since and proc.born(pid) >= since]

    @property
    def complete(self) -> bool:
        """Whether the copy here, which runs already, has all of its memory, or it has come."""
        lists = self._lists
        return self.same_boot and bool(lists) and all(map(_nothing_in, lists))

    @property
    def _lists(self) -> list[Path]:
        """Of what is missing; none where all came before it ran."""
        directory = Path(self.plan.images_dir, self.plan.id)
        return list(directory.glob(missing.file_name("*")))

    def _members(self) -> list[int]:
        tree = Tree(self.plan.pid)
        try:
            tree.refresh()
            return tree.pids
        finally:
            tree.close()

    @contextlib.contextmanager
    def _tree(self) -> Iterator[Tree | None]:
        """The copy here, once CRIU has let go of it; None where there is none."""
        self._await_criu()
        members = self.living
        if not members:
            yield None
            return
        tree = Tree(members[0])
        try:
            for pid in members[1:]:
                tree.adopt(pid)
            tree.refresh()
            yield tree
        finally:
            tree.close()

    def _await_criu(self) -> None:
        """It holds the process by its parasite while it dumps, and is its parent in a restore."""
        worker, started = self._facts.get("worker", 0), self._facts.get("worker_born", 0)
        deadline = time.monotonic() + _CRIU_PATIENCE
        while worker and started and _lives(worker, started) and time.monotonic() < deadline:
            time.sleep(_POLL)

    def thaw(self) -> None:
        """Let it go on, but for members that somebody else had stopped."""
        with self._tree() as tree:
            if tree is not None:
                tree.stopped_before = set(self._facts.get("stopped", []))
                tree.thaw()
        if all(map(_nothing_in, self._lists)):  # else it might wait as `agent.tcp.apart` says
            self._probe_again()
        self._let_go()

    def kill(self) -> None:
        """End the copy, which never ran, without a word to the peers."""
        with self._tree() as tree:
            if tree is not None:
                asyncio.run(tree.kill())

    def end_copy(self) -> None:
        """End the copy, which runs elsewhere now, without a word to the peers."""
        self.kill()

    # --- streams

    def release(self) -> None:
        """Out of repair mode, with every stream in the state that it had."""
        with self._tree() as tree:
            if tree is None:
                return
            rows = [Stream.from_wire(row) for row in self._facts.get("streams", [])]
            streams = {(one.local, one.remote): one for one in rows}
            common = [(*one,) for one in self._facts.get("common", [])]
            self._common = [one for one in common if len(one) == 3 and options.valid(*one)]
            for sock in steal(tree.pidfds, socket_descriptors(tree.pids)).values():
                try:
                    self._release(sock, streams)
                except OSError:  # the peer may have gone meanwhile
                    sock.close()

    def _release(self, sock: socket.socket, streams: dict[tuple[Any, Any], Stream]) -> None:
        if not sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR):
            sock.close()
            return
        stream = None
        with contextlib.suppress(OSError):  # reset meanwhile: it has no peer any more
            stream = streams.get((_plain(sock.getsockname()), _plain(peer_name(sock))))
        if self._role == DESTINATION and stream is not None:
            with contextlib.closing(Replayer()) as replayer:
                release(sock, stream, replayer.inject)
        else:
            leave_repair(sock)
            # Repair mode has cleared it, and a listener that starts anew needs it of them all.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._role == DESTINATION:
                options.restore_late(sock, self._common)
        self._peer_asleep.append(sock)

    def _probe_again(self) -> None:
        waited = 0.0
        for after in _PROBES if self._peer_asleep else ():
            time.sleep(after - waited)
            waited = after
            for sock in self._peer_asleep:
                with contextlib.suppress(OSError):
                    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
                    sock.setsockopt(socket.IPPROTO_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)

    def _let_go(self) -> None:
        for sock in self._peer_asleep:
            sock.close()
        self._peer_asleep.clear()

    # --- network

    def unlock(self) -> None:
        apply.run(render.unlock(self.plan.id))
        apply.run(render.unlock_time_waits(self.plan.id))

    def take_back_addresses(self) -> None:
        """Only what had been given up; where the process does not live here any more, nothing."""
        if self._history.entered("handed-over") is not None and self.living:
            with self._movers() as movers:
                for mover in movers:
                    mover.add()
                for mover in movers:
                    with contextlib.suppress(AddressError):  # the peers find it by asking
                        mover.announce()

    def give_addresses(self) -> None:
        """Somebody may have taken one back since the hand-over."""
        with self._movers() as movers:
            for mover in movers:
                mover.remove()

    def drop_addresses(self) -> None:
        """Only what had been taken."""
        if self._history.entered("taking-over") is not None:
            self.give_addresses()

    @contextlib.contextmanager
    def _movers(self) -> Iterator[list[AddressMover]]:
        with contextlib.ExitStack() as opened:
            movers = []
            for one in self.plan.addresses:
                device = one.source_device if self._role == SOURCE else one.destination_device
                mover = AddressMover(one.address, one.prefixlen, device)
                movers.append(opened.enter_context(contextlib.closing(mover)))
            yield movers

    def wipe(self) -> None:
        """Leave no images. Idempotent."""
        directory = Path(self.plan.images_dir, self.plan.id)
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()
