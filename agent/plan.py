"""The plan of one migration: what both agents are told before anything is touched.

The planner (`orchestrator.plan`) builds it from the facts of both hosts; it crosses the wire as
`to_wire()` and is read with `from_wire()`, which takes nothing on trust: every type, range and
size is checked, so that an agent never acts on a malformed plan.
"""

from __future__ import annotations

import ipaddress
import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from agent.bandwidth import MAX_RATE, MIN_RATE
from agent.errors import ProtocolError, shown
from agent.sync.paths import MAX_PATHS, why_not, why_not_file

ID_PATTERN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")

DEFAULT_IMAGES_DIR = "/run/streamferry"
DEFAULT_MAX_BLACKOUT = 10.0  # seconds
STOP, PRE_COPY, POST_COPY = MEMORY_MODES = ("stop", "pre-copy", "post-copy")  # how the memory goes

MAX_BLACKOUT_LIMIT = 3600.0  # seconds
MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
MAX_TREE = 1 << 16
MAX_ADDRESSES = 256
MAX_LISTENERS = 4096
MAX_LINK_HOSTS = 64
MAX_FAULTS = 64
MAX_ROUNDS = 100
_MAX_MEMORY = 1 << 47
_MAX_PATH = 3072  # below PATH_MAX, with room for the names inside
_MAX_TEXT = 255
_DEVICE = re.compile(r"[^\s/:\x00-\x1f]{1,15}")  # IFNAMSIZ, dev_valid_name() in net/core/dev.c

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Address:
    """A service address that moves with the process, and the device it has on each host."""

    address: str  # textual, in its shortest form, without a scope
    prefixlen: int
    family: int  # 4 or 6
    source_device: str
    destination_device: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket of the tree; a wildcard's address is "0.0.0.0" or "::"."""

    address: str
    port: int
    family: int  # 4 or 6
    v6only: bool = False  # IPV6_V6ONLY; without it, a listener on "::" has the IPv4 port, too

    @property
    def wildcard(self) -> bool:
        return self.address in ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Plan:
    """What moves, and how. Immutable; `from_wire(plan.to_wire()) == plan`."""

    id: str  # matches ID_PATTERN; names tables, directories and log lines
    pid: int
    tree: tuple[int, ...]  # PIDs of all processes, the root (`pid`) first
    addresses: tuple[Address, ...]
    listeners: tuple[Listener, ...]
    memory: int  # bytes resident in the tree, for the progress
    shell_job: bool  # the session's leader is outside of the tree
    source: str = "source"  # the hosts' names at the orchestrator
    destination: str = "destination"
    images_dir: str = DEFAULT_IMAGES_DIR
    max_blackout: float = DEFAULT_MAX_BLACKOUT  # seconds
    memory_mode: str = STOP  # one of MEMORY_MODES
    max_rounds: int = 8  # of memory that goes ahead, before the process stands still
    may_follow: bool = False  # pre-copy may become another, where max_blackout would not hold
    bandwidth: int = 0  # bytes a second of what goes ahead of the freeze; 0: no limit
    replay: bool = True
    boundary: bool = True  # false (tests only): everything is restored as already sent
    missing_options: bool = False  # socket options that the destination lacks are left out
    sync_dirs: tuple[str, ...] = ()  # brought to the destination with all that is in them
    sync_files: tuple[str, ...] = ()  # regular files that are brought
    sync_places: tuple[str, ...] = ()  # directories that are made, with nothing in them
    link_hosts: tuple[str, ...] = ()  # where the destination's sshd was reached
    faults: tuple[str, ...] = ()  # POINT@ROLE=ACTION, see agent.fault

    def to_wire(self) -> dict[str, Any]:
        """A map of the fields; lists in place of tuples, maps in place of dataclasses."""
        wire = asdict(self)
        for name, value in wire.items():
            if isinstance(value, tuple):
                wire[name] = list(value)
        return wire

    @property
    def syncs(self) -> bool:
        """Whether files are brought."""
        return bool(self.sync_dirs or self.sync_files or self.sync_places)

    @classmethod
    def from_wire(cls, wire: object) -> Plan:
        """The plan of `to_wire()`. Raises `ProtocolError` on anything else."""
        values = _fields(wire, cls, "plan")
        plan = cls(
            id=_matching(values["id"], ID_PATTERN, "id"),
            pid=_pid(values["pid"], "pid"),
            tree=_tuple(values["tree"], _pid, MAX_TREE, "tree"),
            addresses=_tuple(values["addresses"], _address, MAX_ADDRESSES, "addresses"),
            listeners=_tuple(values["listeners"], _listener, MAX_LISTENERS, "listeners"),
            memory=_integer(values["memory"], 0, _MAX_MEMORY, "memory"),
            shell_job=_boolean(values["shell_job"], "shell_job"),
            source=_text(values["source"], "source"),
            destination=_text(values["destination"], "destination"),
            images_dir=_path(values["images_dir"], "images_dir"),
            max_blackout=_seconds(values["max_blackout"], "max_blackout"),
            memory_mode=_one_of(values["memory_mode"], MEMORY_MODES, "memory_mode"),
            max_rounds=_integer(values["max_rounds"], 0, MAX_ROUNDS, "max_rounds"),
            may_follow=_boolean(values["may_follow"], "may_follow"),
            bandwidth=_bandwidth(values["bandwidth"], "bandwidth"),
            replay=_boolean(values["replay"], "replay"),
            boundary=_boolean(values["boundary"], "boundary"),
            missing_options=_boolean(values["missing_options"], "missing_options"),
            sync_dirs=_tuple(values["sync_dirs"], _sync_dir, MAX_PATHS, "sync_dirs"),
            sync_files=_tuple(values["sync_files"], _sync_file, MAX_PATHS, "sync_files"),
            sync_places=_tuple(values["sync_places"], _sync_dir, MAX_PATHS, "sync_places"),
            link_hosts=_tuple(values["link_hosts"], _text, MAX_LINK_HOSTS, "link_hosts"),
            faults=_tuple(values["faults"], _text, MAX_FAULTS, "faults"),
        )
        if not plan.tree or plan.tree[0] != plan.pid:
            raise _malformed("tree", "its first PID is not the plan's")
        if len(set(plan.tree)) != len(plan.tree):
            raise _malformed("tree", "a PID occurs twice")
        if len({one.address for one in plan.addresses}) != len(plan.addresses):
            raise _malformed("addresses", "an address occurs twice")
        return plan


def checked_pid(value: object) -> int:
    """A number that came from elsewhere and may be a PID. Raises `ProtocolError`."""
    return _integer(value, -MAX_PID, MAX_PID, "pid")


def checked_images_dir(value: object) -> str:
    """A directory for images that came from elsewhere. Raises `ProtocolError`."""
    return _path(value, "images_dir")


def new_id() -> str:
    """A migration's id: local time and six hex digits, "20261123-134501-7f3a9c"."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


# --- validation; `where` names the field in the error


def _malformed(where: str, detail: str) -> ProtocolError:
    return ProtocolError(detail=f"in the plan, {where}: {detail}")


def _fields(wire: object, cls: type, where: str) -> dict[str, Any]:
    """The map, when it has the fields of `cls`, no fewer and no more."""
    names = {field.name for field in fields(cls)}
    if not isinstance(wire, dict):
        raise _malformed(where, "it is not a map")
    if wire.keys() != names:
        odd = sorted(map(repr, wire.keys() ^ names))
        raise _malformed(where, f"fields missing or unknown: {', '.join(odd)[:200]}")
    return wire


def _tuple(
    value: object, item: Callable[[object, str], _T], limit: int, where: str
) -> tuple[_T, ...]:
    if not isinstance(value, list | tuple):
        raise _malformed(where, "it is not a list")
    if len(value) > limit:
        raise _malformed(where, f"{len(value)} entries are over the limit of {limit}")
    return tuple(item(one, f"{where}[{index}]") for index, one in enumerate(value))


def _integer(value: object, low: int, high: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _malformed(where, f"{shown(value, 80)} is not a whole number")
    if not low <= value <= high:
        raise _malformed(where, f"{value} is not between {low} and {high}")
    return value


def _bandwidth(value: object, where: str) -> int:
    rate = _integer(value, 0, MAX_RATE, where)
    return rate and _integer(rate, MIN_RATE, MAX_RATE, where)


def _pid(value: object, where: str) -> int:
    return _integer(value, 1, MAX_PID, where)


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _malformed(where, f"{shown(value, 80)} is neither true nor false")
    return value


def _seconds(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _malformed(where, f"{shown(value, 80)} is not a number of seconds")
    if not 0 < value <= MAX_BLACKOUT_LIMIT:
        raise _malformed(where, f"{value} is not between 0 and {MAX_BLACKOUT_LIMIT}")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > _MAX_TEXT:
        raise _malformed(where, f"{shown(value, 80)} is not a short text")
    if not value.isprintable():
        raise _malformed(where, f"{shown(value, 80)} has characters that cannot be printed")
    return value


def _one_of(value: object, choices: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise _malformed(where, f"{shown(value, 80)} is none of {', '.join(choices)}")
    return value


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or len(value) > _MAX_PATH:
        raise _malformed(where, f"{shown(value, 80)} is not an absolute path")
    if "\0" in value or value == "/" or any(part in (".", "..") for part in value.split("/")):
        raise _malformed(where, f"{shown(value, 80)} is not a path of a directory to use")
    return value


def _sync_dir(value: object, where: str) -> str:
    path = _path(value, where)
    if (reason := why_not(path)) is not None:
        raise _malformed(where, f"{shown(path, 80)} may not be brought: {reason}")
    return path


def _sync_file(value: object, where: str) -> str:
    path = _path(value, where)
    if (reason := why_not_file(path)) is not None:
        raise _malformed(where, f"{shown(path, 80)} may not be brought: {reason}")
    return path


def _matching(value: object, pattern: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _malformed(where, f"{shown(value, 80)} does not have the form {pattern.pattern}")
    return value


def _ip(value: object, family: int, where: str) -> str:
    if not isinstance(value, str) or len(value) > 64 or "%" in value:
        raise _malformed(where, f"{shown(value, 80)} is not an address")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise _malformed(where, f"{shown(value, 80)} is not an address") from None
    if address.version != family:
        raise _malformed(where, f"{value} is not of family {family}")
    return value


def _address(value: object, where: str) -> Address:
    values = _fields(value, Address, where)
    family = _integer(values["family"], 4, 6, f"{where}.family")
    address = _ip(values["address"], family, f"{where}.address")
    if str(ipaddress.ip_address(address)) != address:
        raise _malformed(f"{where}.address", f"{address} is not in its shortest form")
    return Address(
        address=address,
        prefixlen=_integer(
            values["prefixlen"], 0, 32 if family == 4 else 128, f"{where}.prefixlen"
        ),
        family=family,
        source_device=_matching(values["source_device"], _DEVICE, f"{where}.source_device"),
        destination_device=_matching(
            values["destination_device"], _DEVICE, f"{where}.destination_device"
        ),
    )


def _listener(value: object, where: str) -> Listener:
    values = _fields(value, Listener, where)
    family = _integer(values["family"], 4, 6, f"{where}.family")
    return Listener(
        address=_ip(values["address"], family, f"{where}.address"),
        port=_integer(values["port"], 1, 65535, f"{where}.port"),
        family=family,
        v6only=_boolean(values["v6only"], f"{where}.v6only"),
    )
