"""What to read of a socket to know its options, and what the readings say.

Which options a kernel has, and what a fresh socket has of them, is found out once. What cannot be
set without another reading showing it is read only then.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
from collections.abc import Collection
from dataclasses import dataclass

from agent.errors import AgentError
from agent.kernel import uapi
from agent.kernel.filter import get_filter
from agent.tcp.option_table import (
    ANCILLARY,
    BY_NAME,
    BY_NUMBER,
    COUNTERS,
    FCNTL,
    LISTENING,
    READINGS,
    TABLE,
    Option,
    OptionValue,
)

Recorded = tuple[int, int, OptionValue]  # level, number, value
Shown = tuple[tuple[Option, OptionValue], ...]  # to be read as well; and what is not recorded

NO_OWNER = bytes(uapi.F_OWNER_EX.size)
_ECN = 3  # the bits of IP_TOS and IPV6_TCLASS that the kernel sets itself (RFC 3168)
_FILTER = (socket.SOL_SOCKET, uapi.SO_ATTACH_FILTER)
_PRIORITY = (socket.SOL_SOCKET, uapi.SO_PRIORITY)
_TOS = (socket.IPPROTO_IP, uapi.IP_TOS)  # to set it sets that one, too


class FilterStays(AgentError):
    code = "socket-filter"
    template = "the filter attached to a socket cannot be moved: {detail}"
    hint_template = "Let the program detach it (SO_DETACH_FILTER), or attach a short classic one."


@dataclass(frozen=True, slots=True)
class _Row:
    """One reading of a dump: of an option, or of one of `READINGS` (its level is -1)."""

    level: int
    number: int
    fixed: OptionValue | None
    mask: int  # of an int's bits that are the program's
    shows: Shown


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to read of a socket of one family."""

    calls: tuple[tuple[int, ...], ...]  # arguments of getsockopt
    rows: tuple[_Row, ...]
    fresh: tuple[OptionValue, ...]
    recorded: tuple[Recorded, ...]  # of a fresh socket of this host
    optmem: Shown
    forward: Shown
    pacing: Shown
    owner: Shown


def read(sock: socket.socket, option: Option) -> OptionValue:
    if option.level == FCNTL:
        if option.number == uapi.F_SETOWN_EX:
            return fcntl.fcntl(sock, uapi.F_GETOWN_EX, NO_OWNER)
        if option.number == uapi.F_SETSIG:
            return fcntl.fcntl(sock, uapi.F_GETSIG)
        return int(bool(fcntl.fcntl(sock, uapi.F_GETFL) & uapi.O_ASYNC))
    if (option.level, option.number) == _FILTER:
        return _read_filter(sock)
    if option.size:
        return sock.getsockopt(option.level, option.number, option.size)
    return sock.getsockopt(option.level, option.number)


def _read_filter(sock: socket.socket) -> bytes:
    try:
        found = get_filter(sock.fileno())
    except PermissionError as error:
        raise FilterStays(detail="it is an eBPF program, not to be read back") from error
    if len(found) > BY_NUMBER[_FILTER].size:
        raise FilterStays(detail=f"it is of {len(found) // uapi.SOCK_FILTER_SIZE} instructions")
    return found


@functools.lru_cache(maxsize=8)
def plan_of(family: int, kind: int) -> Plan:
    values = _fresh(family, kind)

    def shown_by(one: Option) -> Collection[str]:
        """A listening socket is read in full: there are few, and all that they accept inherits."""
        return one.seen_by or (ANCILLARY if one.rare and kind != LISTENING else ())

    def shows(name: str) -> Shown:
        found = (BY_NAME[other] for other in values if other in BY_NAME)
        return tuple(
            (one, values[one.name] if one.fixed is None else one.fixed)
            for one in found
            if name in shown_by(one)
        )

    rows: list[_Row] = []
    calls: list[tuple[int, ...]] = []
    fresh: list[OptionValue] = []
    for name, value in values.items():
        if name in READINGS:
            rows.append(_Row(-1, -1, None, -1, shows(name)))
            calls.append(READINGS[name])
        elif (one := BY_NAME[name]).level == FCNTL or shown_by(one):
            continue
        else:
            mask = ~_ECN if name in ("IP_TOS", "IPV6_TCLASS") else -1
            rows.append(_Row(one.level, one.number, one.fixed, mask, shows(name)))
            calls.append((one.level, one.number, *([one.size] if one.size else [])))
        fresh.append(value)
    recorded = (
        (row.level, row.number, value)
        for row, value in zip(rows, fresh, strict=True)
        if row.fixed not in (None, value)
    )
    others = (*COUNTERS, "F_SETOWN_EX")
    return Plan(tuple(calls), tuple(rows), tuple(fresh), tuple(recorded), *map(shows, others))


def _fresh(family: int, kind: int) -> dict[str, OptionValue]:
    """What a fresh socket has, of all that this kernel knows."""
    values: dict[str, OptionValue] = {}
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        for option in TABLE:
            if option.family in (0, family) and option.of <= kind:
                with contextlib.suppress(OSError):
                    values[option.name] = read(sock, option)
        for name, (level, number, size) in READINGS.items():
            if level != socket.IPPROTO_IPV6 or family == socket.AF_INET6:
                values[name] = sock.getsockopt(level, number, size)
    return values


@functools.lru_cache(maxsize=256)
def told(plan: Plan, values: tuple[OptionValue, ...]) -> tuple[tuple[Recorded, ...], Shown]:
    """What is recorded of these readings, and what is to be read as well.

    Remembered, as the sockets of a program have their options alike.
    """
    options = list(plan.recorded)
    shown: Shown = ()
    priority = False
    for row, value, fresh in zip(plan.rows, values, plan.fresh, strict=True):
        key = (row.level, row.number)
        if value == fresh and not (priority and key == _PRIORITY):
            continue
        shown += row.shows
        if isinstance(value, int):
            value &= row.mask
            if not value and row.mask != -1:
                continue
        if row.fixed is not None:
            options = [one for one in options if one[:2] != key]
        if row.level != -1 and value != row.fixed:
            options.append((*key, value))
        priority = priority or key == _TOS
    return tuple(options), shown
