"""The shapes of what the probes find, shared by the agent that looks and the planner that judges.

Facts cross the wire as plain msgpack maps; whoever receives them calls `validate()` before use.
Sizes are bytes, addresses are textual and in their shortest form, an IPv4-mapped IPv6 address is
given as the IPv4 address that is on the wire.
"""

from __future__ import annotations

import types
import typing
from typing import Any, NamedTuple, TypedDict, TypeVar, cast, is_typeddict

from agent.cordon import CordonFacts
from agent.errors import Field, ProtocolError, shown


class AddressFacts(TypedDict):
    """One address of a device (agent.address.inventory)."""

    address: str
    prefixlen: int
    device: str
    family: int  # 4 or 6
    primary: bool
    has_secondaries: bool
    promotes: bool  # the secondaries stay when it goes
    scope: str
    dynamic: bool


class CriuFacts(TypedDict):
    path: str | None
    version: list[int] | None  # [4, 2] or [4, 1, 1]; None when it could not be told
    problem: str | None  # the first complaint of `criu check`


class ImagesFacts(TypedDict):
    """The directory of the images, or the nearest one that exists above it."""

    path: str
    tmpfs: bool
    free: int
    problem: str | None  # why it cannot be created, readable by its owner only


class HostFacts(TypedDict):
    identity: str  # equal for two agents exactly when they run on the same machine
    hostname: str
    kernel: str  # uname -r
    machine: str  # uname -m
    python: str
    uid: int
    capabilities: int  # effective capabilities, a mask of 1 << CAP_*
    missing_capabilities: list[str]  # those of the needed ones
    cpu_flags: list[str]  # instruction sets a program may have found and may use
    criu: CriuFacts
    nftables: str | None  # each of these: None when it was tried and works, or what failed
    sock_diag: str | None
    tcp_repair: str | None
    raw_socket: str | None
    packet_socket: str | None
    choose_pid: str | None
    userfault: str | None
    tables: list[str]  # nftables tables of Streamferry that exist
    memory_available: int  # MemAvailable, or what the cgroup's limit leaves
    images: ImagesFacts
    addresses: list[AddressFacts]
    reached: str | None  # the address by which this session's sshd was reached
    named: list[str]  # addresses of the host's own name in /etc/hosts
    gateways: list[list[str]]  # [gateway, device] of each IPv4 route that has one
    descriptors: int  # how many descriptors the agent may have
    processes: int
    cordon: CordonFacts | None


class ProcessInfo(TypedDict):
    pid: int
    ppid: int
    comm: str
    threads: list[int]
    pgid: int
    sid: int
    state: str  # a letter, proc_pid_stat(5)
    thread_states: str  # the different letters of all threads
    tracer: int  # PID of a debugger, 0 without
    memory: int  # anonymous, shared and swapped memory: what an image holds
    capabilities: int  # permitted capabilities, a mask
    namespaces: list[str]  # kinds of namespace that are not the agent's own
    limits: dict[str, int]  # hard limits by their names in /proc/PID/limits; -1: none
    descriptors: int  # highest descriptor + 1


class FileFacts(TypedDict):
    """A path the tree needs at the destination."""

    path: str
    kind: str  # "file", "directory", "fifo" or "device"
    size: int  # compared for files, unless -1 (append-only logs, /proc, /sys)
    mode: int  # st_mode
    mtime_ns: int
    build_id: str  # hex, of an ELF file; "" without
    digest: str  # SHA-256, where neither size nor build-id says enough; "" without
    written: bool  # it is open for writing
    pid: int  # one that uses it
    use: str  # "descriptor 5", "mapped", "working directory" ...


class Obstacle(TypedDict):
    """Something of the tree that cannot move; `orchestrator.refusals` has the words."""

    code: str
    fields: dict[str, Field]


class ConnectionFacts(NamedTuple):
    """A TCP socket that is neither listening nor closed. On the wire: a list."""

    family: int  # 4 or 6
    local: str
    local_port: int
    remote: str  # "" before it is known (SYN_SENT)
    remote_port: int
    state: int  # TCP_*, include/net/tcp_states.h


class ListenerFacts(TypedDict):
    address: str  # "0.0.0.0" or "::" for a wildcard
    port: int
    family: int  # 4 or 6
    v6only: bool
    backlog: int
    waiting: int  # connections in the accept queue
    pid: int
    fd: int


class OptionFacts(NamedTuple):
    """A socket option that TCP sockets of the tree have, once. On the wire: a list."""

    family: int  # 4 or 6
    level: int  # the numbers of setsockopt(2)
    number: int
    value: int  # 0 where it is not an int, and `data` has it
    data: str  # hex


class BoundFacts(TypedDict):
    """A UDP or unconnected TCP socket that has a port."""

    protocol: str  # "udp" or "tcp"
    address: str
    port: int
    family: int  # 4 or 6
    pid: int
    fd: int


class OtherSocket(TypedDict):
    """A TCP socket outside of the tree, bound to one address of the host."""

    address: str
    port: int
    state: int
    pid: int  # 0 when it cannot be told
    comm: str


class ProcessFacts(TypedDict):
    pid: int
    comm: str
    cmdline: list[str]
    processes: list[ProcessInfo]  # root first
    shell_job: bool  # the root is not the leader of its session
    memory: int
    files: list[FileFacts]
    unix_names: list[str]  # names of bound unix sockets, "@" for the zero byte of abstract ones
    obstacles: list[Obstacle]
    connections: list[ConnectionFacts]
    listeners: list[ListenerFacts]
    bound: list[BoundFacts]
    options: list[OptionFacts]
    closing: dict[str, int]  # state -> count of closed sockets that the kernel still finishes
    others: list[OtherSocket]


class TakenPid(TypedDict):
    pid: int
    owner: int  # PID of the process it belongs to
    comm: str


class FileProblem(TypedDict):
    path: str
    problem: str  # "missing", "different", or "other" where it is of another kind
    detail: str  # "" or what differs
    pid: int
    use: str


class TakenPort(TypedDict):
    protocol: str
    address: str
    port: int
    pid: int  # 0 when it cannot be told
    comm: str
    detail: str


class LowLimit(TypedDict):
    pid: int
    limit: str
    needed: int  # -1: unlimited
    offered: int


class MissingOption(TypedDict):
    option: str  # its C name
    reason: str


class DestinationFacts(TypedDict):
    taken: list[TakenPid]
    files: list[FileProblem]
    ports: list[TakenPort]
    unix_names: list[str]  # of the process's, those in use here
    limits: list[LowLimit]
    missing_options: list[MissingOption]  # of the process's


_T = TypeVar("_T")
_HINTS: dict[Any, dict[str, Any]] = {}
_MAX_NUMBER = 1 << 64  # what msgpack has of an int


def validate(value: object, shape: type[_T], where: str) -> _T:
    """`value` when it has the shape (a TypedDict). Raises `ProtocolError` naming the place."""
    return cast(_T, _check(value, shape, where))


def _check(value: object, shape: Any, where: str) -> Any:
    origin = typing.get_origin(shape)
    if is_typeddict(shape):
        hints = _hints(shape)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            odd = sorted(map(repr, value.keys() ^ hints.keys())) if isinstance(value, dict) else []
            raise _bad(where, f"not of the shape of {shape.__name__} {', '.join(odd):.200}")
        return {name: _check(value[name], hint, f"{where}.{name}") for name, hint in hints.items()}
    if origin is list:
        (item,) = typing.get_args(shape)
        if not isinstance(value, list | tuple):
            raise _bad(where, "not a list")
        return [_check(one, item, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is dict:
        _, item = typing.get_args(shape)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _bad(where, "not a map with string keys")
        return {key: _check(one, item, f"{where}[{shown(key, 40)}]") for key, one in value.items()}
    if origin in (types.UnionType, typing.Union):
        return _check_union(value, typing.get_args(shape), where)
    if isinstance(shape, type) and issubclass(shape, tuple):
        return _check_tuple(value, shape, where)
    if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        raise _bad(where, f"{shown(value)} is not of type {shape.__name__}")
    return _sane(value, where)


def _check_union(value: object, shapes: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in shapes:
        return None
    scalars = tuple(one for one in shapes if one in (int, float, str))
    if scalars and not isinstance(value, bool) and isinstance(value, scalars):
        return _sane(value, where)
    rest = [one for one in shapes if one is not type(None) and one not in scalars]
    if len(rest) != 1:
        raise _bad(where, f"{shown(value)} is of no type that is allowed here")
    return _check(value, rest[0], where)


def _check_tuple(value: object, shape: Any, where: str) -> Any:
    """A NamedTuple of plain types; kept short, as there may be many thousands."""
    hints = _hints(shape)
    if isinstance(value, list | tuple) and len(value) == len(hints):
        if all(type(one) is hint for one, hint in zip(value, hints.values(), strict=True)):
            return shape(*value)
    raise _bad(where, f"{shown(value)} is not of the shape of {shape.__name__}")


def _sane(value: Any, where: str) -> Any:
    """Sums, formats and JSON take no NaN for a number, no infinity, and no int of any size."""
    if isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:
        raise _bad(where, f"{shown(value)} is not a number of any use")
    return value


def _hints(shape: Any) -> dict[str, Any]:
    if shape not in _HINTS:
        _HINTS[shape] = typing.get_type_hints(shape)
    return _HINTS[shape]


def _bad(where: str, detail: str) -> ProtocolError:
    return ProtocolError(detail=f"in {where}: {detail}")
