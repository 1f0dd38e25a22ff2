"""The socket options that move with a stream: one table, read by dump and restore alike.

An option is recorded only where it differs from a fresh socket's, so that an ordinary stream
costs no system call for it at the destination.
"""

from __future__ import annotations

import functools
import socket
from dataclasses import dataclass

from agent.kernel import uapi

OptionValue = int | bytes

# Set in this order. The late ones the restore needs for itself, and `release` puts them right;
# buffers and TCP_NOTSENT_LOWAT it also changes for a moment.


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    level: int
    number: int
    size: int = 0  # of the value in bytes, 0 for an int
    family: int = 0  # the one family it exists for, or 0
    late: bool = False  # applied by `release`, after the stream has left repair mode


_TCP = socket.IPPROTO_TCP
_SOL = socket.SOL_SOCKET

TABLE: tuple[Option, ...] = (
    Option("SO_REUSEADDR", _SOL, uapi.SO_REUSEADDR, late=True),
    Option("IP_TRANSPARENT", socket.IPPROTO_IP, uapi.IP_TRANSPARENT, late=True),
    Option("IPV6_V6ONLY", socket.IPPROTO_IPV6, uapi.IPV6_V6ONLY, family=socket.AF_INET6),
    Option("IP_FREEBIND", socket.IPPROTO_IP, uapi.IP_FREEBIND),
    Option("IP_TOS", socket.IPPROTO_IP, uapi.IP_TOS),
    Option("IP_TTL", socket.IPPROTO_IP, uapi.IP_TTL),
    Option("IPV6_TCLASS", socket.IPPROTO_IPV6, uapi.IPV6_TCLASS, family=socket.AF_INET6),
    Option("IPV6_UNICAST_HOPS", socket.IPPROTO_IPV6, uapi.IPV6_UNICAST_HOPS,
           family=socket.AF_INET6),
    Option("SO_KEEPALIVE", _SOL, uapi.SO_KEEPALIVE),
    Option("SO_OOBINLINE", _SOL, uapi.SO_OOBINLINE),
    Option("SO_PRIORITY", _SOL, uapi.SO_PRIORITY),
    Option("SO_LINGER", _SOL, uapi.SO_LINGER, size=8),
    Option("SO_REUSEPORT", _SOL, uapi.SO_REUSEPORT),
    Option("SO_RCVLOWAT", _SOL, uapi.SO_RCVLOWAT),
    Option("SO_RCVTIMEO", _SOL, uapi.SO_RCVTIMEO, size=16),
    Option("SO_SNDTIMEO", _SOL, uapi.SO_SNDTIMEO, size=16),
    Option("SO_BINDTODEVICE", _SOL, uapi.SO_BINDTODEVICE, size=16),
    Option("SO_TIMESTAMP", _SOL, uapi.SO_TIMESTAMP),
    Option("SO_TIMESTAMPNS", _SOL, uapi.SO_TIMESTAMPNS),
    Option("SO_MARK", _SOL, uapi.SO_MARK),
    Option("SO_BUSY_POLL", _SOL, uapi.SO_BUSY_POLL),
    Option("SO_MAX_PACING_RATE", _SOL, uapi.SO_MAX_PACING_RATE),
    Option("TCP_KEEPIDLE", _TCP, uapi.TCP_KEEPIDLE),
    Option("TCP_KEEPINTVL", _TCP, uapi.TCP_KEEPINTVL),
    Option("TCP_KEEPCNT", _TCP, uapi.TCP_KEEPCNT),
    Option("TCP_SYNCNT", _TCP, uapi.TCP_SYNCNT),
    Option("TCP_LINGER2", _TCP, uapi.TCP_LINGER2),
    Option("TCP_DEFER_ACCEPT", _TCP, uapi.TCP_DEFER_ACCEPT),
    Option("TCP_CONGESTION", _TCP, uapi.TCP_CONGESTION, size=16),
    Option("TCP_THIN_LINEAR_TIMEOUTS", _TCP, uapi.TCP_THIN_LINEAR_TIMEOUTS),
    Option("TCP_USER_TIMEOUT", _TCP, uapi.TCP_USER_TIMEOUT),
    Option("TCP_FASTOPEN", _TCP, uapi.TCP_FASTOPEN),
    Option("TCP_NOTSENT_LOWAT", _TCP, uapi.TCP_NOTSENT_LOWAT),
    Option("TCP_SAVE_SYN", _TCP, uapi.TCP_SAVE_SYN),
    Option("TCP_INQ", _TCP, uapi.TCP_INQ),
    Option("TCP_TX_DELAY", _TCP, uapi.TCP_TX_DELAY),
    Option("TCP_CORK", _TCP, uapi.TCP_CORK),
    Option("TCP_NODELAY", _TCP, uapi.TCP_NODELAY),
)  # fmt: skip

_LATE = frozenset((option.level, option.number) for option in TABLE if option.late)
_BY_NUMBER = {(option.level, option.number): option for option in TABLE}


def _read(sock: socket.socket, option: Option) -> OptionValue | None:
    try:
        if option.size:
            return sock.getsockopt(option.level, option.number, option.size)
        return sock.getsockopt(option.level, option.number)
    except OSError:
        return None  # this kernel, or this family, does not have it


@functools.lru_cache(maxsize=4)
def _defaults(family: int) -> tuple[tuple[int, int, int, OptionValue], ...]:
    """(level, number, size, value of a fresh socket) of every option this kernel has."""
    rows = []
    with socket.socket(family, socket.SOCK_STREAM) as fresh:
        for option in TABLE:
            if option.family in (0, family) and (value := _read(fresh, option)) is not None:
                rows.append((option.level, option.number, option.size, value))
    return tuple(rows)


def warm_up() -> None:
    """Learn the defaults ahead of time, as the first `dump` would."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            _defaults(family)
        except OSError:
            continue  # the family is switched off on this host


def dump(sock: socket.socket, family: int) -> list[tuple[int, int, OptionValue]]:
    """(level, number, value) of each option that differs from a fresh socket's."""
    get = sock.getsockopt
    changed: list[tuple[int, int, OptionValue]] = []
    for level, number, size, default in _defaults(family):
        value = get(level, number, size) if size else get(level, number)
        if value != default:
            changed.append((level, number, value))
            if number == uapi.IP_TOS and level == socket.IPPROTO_IP:  # it sets the priority, too
                changed.append((_SOL, uapi.SO_PRIORITY, get(_SOL, uapi.SO_PRIORITY)))
    return changed


def restore(sock: socket.socket, options: list[tuple[int, int, OptionValue]]) -> None:
    """Set what `dump` recorded, but for the late ones. Raises `OSError`."""
    for level, number, value in options:
        if (level, number) not in _LATE:
            try:
                sock.setsockopt(level, number, value)
            except OSError:  # a socket that is still bound takes IPV6_V6ONLY no more
                size = len(value) if isinstance(value, bytes) else 0
                if sock.getsockopt(level, number, *([size] if size else [])) != value:
                    raise


def restore_late(sock: socket.socket, options: list[tuple[int, int, OptionValue]]) -> None:
    """Set the options that restoring and repair mode used for themselves."""
    late = {(level, number): value for level, number, value in options}
    set_option = sock.setsockopt
    if (_SOL, uapi.SO_REUSEADDR) in late:  # leaving repair mode has cleared it
        set_option(_SOL, uapi.SO_REUSEADDR, 1)
    if (socket.IPPROTO_IP, uapi.IP_TRANSPARENT) not in late:
        set_option(socket.IPPROTO_IP, uapi.IP_TRANSPARENT, 0)


def valid(level: int, number: int, value: object) -> bool:
    """Whether the table has this option, and this can be its value: an image may set no other."""
    option = _BY_NUMBER.get((level, number))
    if option is None:
        return False
    if option.size:
        return isinstance(value, bytes) and len(value) <= option.size
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 31) <= value < 1 << 31
