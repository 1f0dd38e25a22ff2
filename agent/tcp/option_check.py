"""What of a stream's options a host cannot give: to be asked before anything is frozen."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from agent.kernel import uapi
from agent.tcp.option_readings import Recorded
from agent.tcp.option_table import BY_NUMBER, FCNTL, OptionValue
from agent.tcp.options import set_one

_SOL = socket.SOL_SOCKET
_TIMESTAMPING = {(_SOL, uapi.SO_TIMESTAMPING), (_SOL, uapi.SO_TIMESTAMPING_NEW)}
_FLAGS = struct.Struct("=I")  # at the beginning of struct so_timestamping (linux/net_tstamp.h)


@dataclass(frozen=True, slots=True)
class Missing:
    """An option that a host cannot give to a socket."""

    level: int
    number: int
    value: OptionValue
    reason: str

    @property
    def name(self) -> str:
        return BY_NUMBER[self.level, self.number].name


def missing(options: Iterable[Recorded], family: int) -> list[Missing]:
    """Which of the recorded options this host, asked with a fresh socket, cannot give.

    To go on without them is a choice: `Sieve` leaves them out. Raises `OSError` where the host
    has no sockets of this family.
    """
    found = []
    for level, number, value in options:
        if level == FCNTL:
            continue  # whether its process exists shows only when that is restored
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            try:
                set_one(sock, level, number, _askable(level, number, value))
            except OSError as error:
                found.append(Missing(level, number, value, _reason(level, number, value, error)))
    return found


class Sieve:
    """Leaves out what this host cannot give; each option and value is asked for once."""

    def __init__(self) -> None:
        self._possible: dict[tuple[int, int, int, OptionValue], bool] = {}

    def possible(self, options: Iterable[Recorded], family: int) -> list[Recorded]:
        kept: list[Recorded] = []
        for level, number, value in options:
            key = (family, level, number, value)
            if key not in self._possible:
                self._possible[key] = not missing([(level, number, value)], family)
            if self._possible[key]:
                kept.append((level, number, value))
        return kept


def _askable(level: int, number: int, value: OptionValue) -> OptionValue:
    """The value without what a fresh socket is refused everywhere."""
    if (level, number) in _TIMESTAMPING and isinstance(value, bytes):
        (flags,) = _FLAGS.unpack(value[: _FLAGS.size])
        flags &= ~(uapi.SOF_TIMESTAMPING_OPT_ID | uapi.SOF_TIMESTAMPING_OPT_ID_TCP)
        return _FLAGS.pack(flags) + value[_FLAGS.size :]
    return value


def _reason(level: int, number: int, value: OptionValue, error: OSError) -> str:
    if isinstance(value, bytes) and error.errno in (errno.ENOENT, errno.ENODEV):
        text = value.partition(b"\0")[0].decode(errors="replace")
        if number == uapi.TCP_CONGESTION and level == socket.IPPROTO_TCP:
            return f"there is no congestion control {text!r}"
        return f"there is no device {text!r}"
    if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
        return "its kernel does not have it"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "it is not permitted"
    return error.strerror or os.strerror(error.errno or errno.EIO)
