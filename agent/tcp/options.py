"""Read and set the socket options that move with a stream; the table is `agent.tcp.option_table`.

An option is recorded only where it differs from a fresh socket's, so that an ordinary stream
costs no system call for it at the destination. At the source the price is one system call for
each of `agent.tcp.option_readings`, and most of the time of a dump.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
import struct
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

from agent.kernel import uapi
from agent.kernel.filter import attach_filter
from agent.tcp.option_readings import NO_OWNER, Recorded, Shown, plan_of, read, told
from agent.tcp.option_table import BY_NUMBER, CONNECTION, FCNTL, LISTENING, OPENING, TABLE
from agent.tcp.option_table import OptionValue as OptionValue  # of a stream's options

_SOL = socket.SOL_SOCKET
_KINDS = {uapi.TCP_LISTEN: LISTENING, uapi.TCP_SYN_SENT: OPENING}
_LINGER = struct.Struct("=ii")  # struct linger { int l_onoff, l_linger; } (linux/socket.h)
_FILTER = (_SOL, uapi.SO_ATTACH_FILTER)
_DEVICE = (_SOL, uapi.SO_BINDTODEVICE)
_LOW_WATER = (_SOL, uapi.SO_RCVLOWAT)
_REUSE = (_SOL, uapi.SO_REUSEADDR)
_TRANSPARENT = (socket.IPPROTO_IP, uapi.IP_TRANSPARENT)
_LATE = frozenset((option.level, option.number) for option in TABLE if option.late)
_MEMORY = struct.Struct("=I12xIII")  # RMEM_ALLOC, FWD_ALLOC, WMEM_QUEUED, OPTMEM of SO_MEMINFO
_LEAST_PAGE = 4096  # bytes: SO_RESERVE_MEM is of whole pages
_NO_RATE = b"\xff" * 8


def warm_up() -> None:
    """Learn the defaults ahead of time, as the first `dump` and `restore` would."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (CONNECTION, OPENING, LISTENING):
            try:
                plan_of(family, kind)
            except OSError:
                continue  # the family is switched off on this host
    _given()


def dump(
    sock: socket.socket,
    family: int,
    state: int | None = None,
    info: bytes | None = None,
    memory: bytes | None = None,
) -> list[Recorded]:
    """(level, number, value) of each option that differs from a fresh socket's.

    What is known of the socket already need not be read again: its `state`, at least 120 bytes of
    TCP_INFO, and SO_MEMINFO. Raises `FilterStays`, and `OSError`.
    """
    get: Callable[..., Any] = sock.getsockopt
    if state is None:
        state = get(socket.IPPROTO_TCP, uapi.TCP_INFO, 1)[0]
    plan = plan_of(family, _KINDS.get(state, CONNECTION))
    values = tuple(starmap(get, plan.calls))
    shown: Shown = ()
    if values == plan.fresh:
        options = list(plan.recorded)
    else:
        recorded, shown = told(plan, values)
        options = list(recorded)
    received, forward, queued, optmem = _MEMORY.unpack_from(
        memory or get(_SOL, uapi.SO_MEMINFO, uapi.MEMINFO.size)
    )
    if optmem:
        shown += plan.optmem
    if received + forward + queued >= _LEAST_PAGE:
        shown += plan.forward
    info = info or get(socket.IPPROTO_TCP, uapi.TCP_INFO, uapi.TCP_INFO_SIZE)
    if info[uapi.TCP_INFO_MAX_PACING_RATE] != _NO_RATE:
        shown += plan.pacing
    owner = fcntl.fcntl(sock.fileno(), uapi.F_GETOWN_EX, NO_OWNER)
    if owner != NO_OWNER:
        options.append((FCNTL, uapi.F_SETOWN_EX, owner))
        shown += plan.owner
    if shown:
        for option, default in {one.name: (one, fresh) for one, fresh in shown}.values():
            if (value := read(sock, option)) != default:
                options.append((option.level, option.number, value))
    return options


def restore(sock: socket.socket, options: Sequence[Recorded]) -> None:
    """Set what `dump` recorded, but for the late ones. Raises `OSError`."""
    given = dict(_given())
    for level, number, value in options:
        key = (level, number)
        mine = given.pop(key, None)
        if key not in _LATE and (mine is None or mine[0] != value):
            set_one(sock, level, number, value)
    for key, (_, fixed) in given.items():
        if key[0] != socket.IPPROTO_IPV6 or sock.family == socket.AF_INET6:
            set_one(sock, *key, fixed)


def set_one(sock: socket.socket, level: int, number: int, value: OptionValue) -> None:
    """Raises `OSError`, unless the option is as wanted all the same."""
    try:
        if level == FCNTL:
            _set_by_fcntl(sock, number, value)
        elif (level, number) == _FILTER:
            assert isinstance(value, bytes)
            attach_filter(sock, value)
        else:
            if (level, number) == (_SOL, uapi.SO_LINGER) and isinstance(value, bytes):
                on, seconds = _LINGER.unpack(value)
                if not on:  # then the kernel takes no seconds
                    sock.setsockopt(level, number, _LINGER.pack(1, seconds))
            sock.setsockopt(level, number, value)
    except OSError:
        # On a socket that is used again it may be so already, and not to be set any more.
        if read(sock, BY_NUMBER[level, number]) != value:
            raise


def _set_by_fcntl(sock: socket.socket, number: int, value: OptionValue) -> None:
    if number == uapi.F_SETFL:
        flags = fcntl.fcntl(sock, uapi.F_GETFL) & ~uapi.O_ASYNC
        fcntl.fcntl(sock, uapi.F_SETFL, flags | (uapi.O_ASYNC if value else 0))
    elif read(sock, BY_NUMBER[FCNTL, number]) != value:  # else the owner changes hands
        try:
            fcntl.fcntl(sock, number, value)
        except ProcessLookupError:
            pass  # the owner is gone


@functools.lru_cache(maxsize=1)
def _given() -> dict[tuple[int, int], tuple[OptionValue, OptionValue]]:
    """What this host gives a fresh socket otherwise than one left alone, and what that would."""
    rows: dict[tuple[int, int], tuple[OptionValue, OptionValue]] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        with sock:
            for level, number, value in plan_of(family, LISTENING).recorded:
                fixed = BY_NUMBER[level, number].fixed
                assert fixed is not None
                with contextlib.suppress(OSError):  # then nobody can have it here
                    sock.setsockopt(level, number, fixed)
                    rows[level, number] = (value, fixed)
    return rows


def device(options: Sequence[Recorded]) -> bytes:
    """The name in SO_BINDTODEVICE, empty where there is none."""
    for level, number, value in options:
        if (level, number) == _DEVICE and isinstance(value, bytes):
            return value.rstrip(b"\0")
    return b""


def low_water(options: Sequence[Recorded]) -> bool:
    """Whether SO_RCVLOWAT is among them."""
    return any((level, number) == _LOW_WATER for level, number, _ in options)


def restore_late(sock: socket.socket, options: Sequence[Recorded]) -> None:
    """Set the options that restoring and repair mode used for themselves, and those that would
    have been in its way. The process must not run yet. Raises `OSError`."""
    transparent = False
    for level, number, value in options:
        key = (level, number)
        if key == _TRANSPARENT:
            transparent = True
        elif key == _REUSE:
            sock.setsockopt(level, number, 1)  # leaving repair mode has cleared it
        elif key in _LATE:
            set_one(sock, level, number, value)
    if not transparent:
        sock.setsockopt(*_TRANSPARENT, 0)


def restore_cleared(sock: socket.socket, options: Sequence[Recorded]) -> None:
    """Set again what leaving repair mode clears; nothing that the process may have changed since.

    Raises `OSError`.
    """
    for level, number, _ in options:
        if (level, number) == _REUSE:
            sock.setsockopt(level, number, 1)


def restore_owner(sock: socket.socket, options: Sequence[Recorded]) -> None:
    """Set whom O_ASYNC and urgent data signal, once the process exists. Raises `OSError`."""
    for level, number, value in options:
        if level == FCNTL:
            set_one(sock, level, number, value)


def valid(level: int, number: int, value: object) -> bool:
    """Whether the table has this option, and this can be its value: an image may set no other."""
    option = BY_NUMBER.get((level, number))
    if option is None:
        return False
    if not option.size:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and option.least <= value <= option.most
        )
    return (
        isinstance(value, bytes)
        and len(value) <= option.size
        and len(value) in (option.lengths or (len(value),))
    )
