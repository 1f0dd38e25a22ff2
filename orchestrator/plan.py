"""The check: turns the facts of both hosts into a plan, or into refusals with a fix each. Pure.

Facts come from agents and are validated before use; what is malformed raises `ProtocolError`.
All reasons are found at once, not only the first: `orchestrator.refusals` has their codes, words
and order.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from agent.cordon import because
from agent.errors import ProtocolError, shown
from agent.kernel import uapi
from agent.plan import (
    DEFAULT_IMAGES_DIR,
    DEFAULT_MAX_BLACKOUT,
    MAX_BLACKOUT_LIMIT,
    POST_COPY,
    PRE_COPY,
    Listener,
    Plan,
    new_id,
)
from agent.probe import capabilities
from agent.probe.facts import DestinationFacts, HostFacts, ProcessFacts, validate
from agent.sync.paths import why_not
from agent.tcp.stream import MOVABLE
from orchestrator.errors import UsageProblem
from orchestrator.host_checks import check_hosts, host_refusals
from orchestrator.memory import AUTO, ROUNDS, choose
from orchestrator.placement import Placement, connection, endpoint, parse, service_addresses
from orchestrator.refusals import Refusal, arranged, refusal
from orchestrator.sync import Choice, Seen, Wish

MARGIN = 64 << 20  # bytes of memory beside that of the process
IMAGES_MARGIN = 16 << 20  # bytes of room beside the memory of the process
SPARE_DESCRIPTORS = 256  # of an agent, beside one a socket

_MIB = 1 << 20

__all__ = ["Options", "Refusal", "check_hosts", "plan"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. Raises `UsageProblem` where it makes no sense."""

    max_blackout: float = DEFAULT_MAX_BLACKOUT  # seconds
    images_dir: str = DEFAULT_IMAGES_DIR
    address: tuple[str, ...] = ()  # service addresses that no socket shows
    memory_mode: str = AUTO  # or one of MEMORY_MODES
    max_rounds: int | None = None  # of what goes ahead; None: as many as suit the mode
    bandwidth: int = 0  # bytes a second of what goes ahead of the freeze; 0: no limit
    replay: bool = True
    boundary: bool = True
    missing_options: bool = False  # go without socket options that the destination lacks
    sync: Wish = Wish()  # files that are brought along
    returns: bool = False  # it was moved away from the destination, which is being emptied
    faults: tuple[str, ...] = ()
    link_hosts: tuple[str, ...] = ()  # where the destination's sshd was reached

    def __post_init__(self) -> None:
        if not 0 < self.max_blackout <= MAX_BLACKOUT_LIMIT:
            limit = f"between 0 and {MAX_BLACKOUT_LIMIT:.0f} seconds"
            raise UsageProblem(detail=f"a blackout of {self.max_blackout} is not {limit}")
        parts = self.images_dir.split("/")
        if parts[0] or self.images_dir == "/" or ".." in parts or "." in parts:
            raise UsageProblem(detail=f"{self.images_dir!r} is not an absolute path")
        for path in self.sync.paths:
            if (reason := why_not(path)) is not None:
                raise UsageProblem(detail=f"{path!r} cannot be brought: {reason}")
        for address in self.address:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise UsageProblem(detail=f"{address!r} is not an IP address") from None


def plan(
    source_name: str,
    destination_name: str,
    source_host: object,
    destination_host: object,
    process: object,
    destination: object,
    options: Options,
    seen: Seen | None = None,
) -> Plan | list[Refusal]:
    """The plan, or every reason why there is none (never an empty list).

    `source_host`, `destination_host`: `HostFacts`; `process`: `ProcessFacts`; `destination`:
    `DestinationFacts`; `seen`: what both have of what may be brought along. Raises
    `ProtocolError` where one of them is malformed.
    """
    judge = _Judge(
        source_name,
        destination_name,
        validate(source_host, HostFacts, f"the facts of {source_name}"),
        validate(destination_host, HostFacts, f"the facts of {destination_name}"),
        validate(process, ProcessFacts, "the facts of the process"),
        validate(destination, DestinationFacts, "the facts of the destination"),
        options,
        seen,
    )
    refusals = arranged(judge.refusals())
    return refusals or judge.plan()


class _Judge:
    """One case: the facts by their names, and what follows from them."""

    def __init__(
        self,
        source: str,
        destination: str,
        source_host: HostFacts,
        destination_host: HostFacts,
        process: ProcessFacts,
        found: DestinationFacts,
        options: Options,
        seen: Seen | None,
    ) -> None:
        self.source, self.destination = source, destination
        self.source_host, self.destination_host = source_host, destination_host
        self.process, self.found, self.options = process, found, options
        if not process["processes"] or process["processes"][0]["pid"] != process["pid"]:
            raise ProtocolError(detail="the facts of the process do not begin with the process")
        names = (source, destination)
        self.sync = Choice(options.sync, seen, process, found, names)
        self.placement = Placement(source, destination, source_host, destination_host, process)

    def refusals(self) -> Iterator[Refusal]:
        yield from host_refusals(
            self.source, self.destination, self.source_host, self.destination_host
        )
        yield from self._cordon()
        yield from self._processes()
        yield from self._obstacles()
        yield from self._connections()
        yield from self._bound()
        self.placement.place(self.options.address)
        yield from self.placement.refusals
        yield from self.sync.refusals()
        yield from self._destination()
        yield from self._room()

    def plan(self) -> Plan:
        """The plan, when there is no refusal."""
        listeners = {
            Listener(one["address"], one["port"], one["family"], one["v6only"]): None
            for one in self.process["listeners"]
        }
        options = self.options
        memory = choose(
            options.memory_mode, self.process["memory"], self.destination, self.destination_host
        )
        rounds = options.max_rounds
        made = Plan(
            id=new_id(),
            pid=self.process["pid"],
            tree=tuple(one["pid"] for one in self.process["processes"]),
            addresses=tuple(self.placement.addresses),
            listeners=tuple(listeners),
            memory=self.process["memory"],
            shell_job=self.process["shell_job"],
            source=self.source,
            destination=self.destination,
            images_dir=options.images_dir,
            max_blackout=options.max_blackout,
            memory_mode=memory.mode,
            max_rounds=ROUNDS.get(memory.mode, 0) if rounds is None else rounds,
            may_follow=memory.may_follow,
            bandwidth=options.bandwidth,
            replay=options.replay,
            boundary=options.boundary,
            missing_options=options.missing_options,
            sync_dirs=tuple(self.sync.dirs),
            sync_files=tuple(self.sync.files),
            sync_places=tuple(self.sync.places),
            link_hosts=options.link_hosts,
            faults=options.faults,
        )
        return Plan.from_wire(made.to_wire())  # what an agent would refuse is refused here

    def _cordon(self) -> Iterator[Refusal]:
        cordon = self.destination_host["cordon"]
        if cordon is not None and not self.options.returns:
            yield refusal("cordoned", host=self.destination, reason=because(cordon))

    def _processes(self) -> Iterator[Refusal]:
        for one in self.process["processes"]:
            pid, comm = one["pid"], one["comm"]
            if one["tracer"]:
                yield refusal("traced", pid=pid, comm=comm, tracer=one["tracer"])
            if "T" in one["thread_states"]:
                yield refusal("stopped", pid=pid, comm=comm)
            if one["state"] in "ZX" and len(one["threads"]) > 1:
                yield refusal("leader-ended", pid=pid, comm=comm)
            for kind in one["namespaces"]:
                if kind in ("mnt", "net", "pid", "user"):
                    yield refusal("namespace", pid=pid, comm=comm, kind=kind, source=self.source)
            if one["sid"] == 0 and "pid" not in one["namespaces"]:
                yield refusal("session-outside", pid=pid, comm=comm)

    def _obstacles(self) -> Iterator[Refusal]:
        for one in self.process["obstacles"]:
            try:
                yield refusal(one["code"], **one["fields"])
            except (KeyError, IndexError, ValueError, TypeError):
                detail = f"an obstacle {shown(one['code'], 40)} that is not known"
                raise ProtocolError(detail=detail) from None

    def _connections(self) -> Iterator[Refusal]:
        ends = {one[1:5] for one in self.process["connections"]}
        here = {one["address"] for one in self.source_host["addresses"]}
        there = {one["address"] for one in self.destination_host["addresses"]}
        for one in self.process["connections"]:
            name = connection(*one[1:5])
            if one.state not in MOVABLE:
                state = uapi.STATE_NAMES.get(one.state, f"state {one.state}")
                yield refusal("state-unsupported", connection=name, state=state)
            if (one.remote, one.remote_port, one.local, one.local_port) in ends:
                continue  # both ends are in the tree
            if one.remote and parse(one.remote).is_loopback:
                yield refusal("loopback-peer", connection=name, source=self.source)
            elif one.remote in here:
                yield refusal("peer-local", connection=name, host=self.source)
            elif one.remote in there:
                yield refusal("peer-local", connection=name, host=self.destination)

    def _bound(self) -> Iterator[Refusal]:
        """CRIU binds these before the address has moved; IPv6 it binds freely."""
        present = {one["address"] for one in self.destination_host["addresses"]}
        moving = service_addresses(self.process, self.options.address)
        for one in self.process["bound"]:
            address = parse(one["address"])
            if address.is_unspecified or address.is_loopback or one["address"] in present:
                continue
            if one["family"] == 4 or one["address"] not in moving:
                yield refusal(
                    "bound-address",
                    thing=f"descriptor {one['fd']} of process {one['pid']}",
                    protocol=one["protocol"].upper(),
                    address=endpoint(one["address"], one["port"]),
                    destination=self.destination,
                )

    def _destination(self) -> Iterator[Refusal]:
        where = {"destination": self.destination}
        for taken in self.found["taken"]:
            yield refusal("pid-taken", **taken, **where)
        for file in self.sync.left():
            code = "file-missing" if file["problem"] == "missing" else "file-different"
            yield refusal(code, **file, **where)
        for port in self.found["ports"]:
            by = f" (process {port['pid']}, {port['comm']})" if port["pid"] else ""
            end = endpoint(port["address"], port["port"])
            yield refusal(
                "port-taken",
                protocol=port["protocol"].upper(),
                endpoint=end,
                detail=port["detail"],
                by=by,
                **where,
            )
        for name in self.found["unix_names"]:
            yield refusal("unix-name-taken", name=name, **where)
        for low in self.found["limits"]:
            needed = "unlimited" if low["needed"] == -1 else low["needed"]
            yield refusal(
                "limit-too-low",
                pid=low["pid"],
                limit=repr(low["limit"]),
                needed=needed,
                offered=low["offered"],
                **where,
            )
        if not self.options.missing_options:
            for lacking in self.found["missing_options"]:
                yield refusal("option-missing", **lacking, **where)
        for one in self.process["processes"]:
            names = capabilities.names(one["capabilities"] & ~self.destination_host["capabilities"])
            if names:
                yield refusal(
                    "process-capabilities",
                    pid=one["pid"],
                    comm=one["comm"],
                    names=", ".join(names),
                    **where,
                )

    def _room(self) -> Iterator[Refusal]:
        problem = self.destination_host["userfault"]
        if self.options.memory_mode in (PRE_COPY, POST_COPY) and problem is not None:
            yield refusal("no-userfaultfd", host=self.destination, detail=problem)
        memory = self.process["memory"]
        sockets = len(self.process["connections"]) + len(self.process["listeners"])
        needed = sockets + SPARE_DESCRIPTORS
        for name, host in (
            (self.source, self.source_host),
            (self.destination, self.destination_host),
        ):
            if host["descriptors"] < needed:
                yield refusal(
                    "descriptor-limit",
                    sockets=sockets,
                    needed=needed,
                    host=name,
                    limit=host["descriptors"],
                )
            images = host["images"]
            if not images["tmpfs"] and self.options.images_dir == DEFAULT_IMAGES_DIR:
                yield refusal("images-on-disk", path=images["path"], host=name)
            room = memory + IMAGES_MARGIN
            if images["free"] < room:
                yield refusal(
                    "images-room",
                    path=images["path"],
                    host=name,
                    available=images["free"] // _MIB,
                    needed=-(-room // _MIB),
                )
            copies = images["tmpfs"] + (host is self.destination_host)
            wanted = copies * memory + MARGIN
            if host["memory_available"] < wanted:
                yield refusal(
                    "memory-short",
                    host=name,
                    available=host["memory_available"] // _MIB,
                    needed=-(-wanted // _MIB),
                    memory=memory // _MIB,
                )
