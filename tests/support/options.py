"""A value for each socket option that moves, which no fresh socket has."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from agent.tcp.option_table import BY_NAME, TABLE, Option, OptionValue
from agent.tcp.options import set_one

_TIMESTAMPS = struct.pack("=ii", 0x18, 0)  # SOF_TIMESTAMPING_RX_SOFTWARE | _SOFTWARE
_PAD = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # an extension header of 8 bytes: PadN
_ACCEPT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # BPF_RET | BPF_K
# struct ipv6_sr_hdr (RFC 8754) with its last segment behind it
_ROUTE = bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, "fd99::2")
_PORTS = 40_000 | (50_000 << 16)
OWNER = struct.pack("=ii", 1, os.getpid())  # F_OWNER_PID


@dataclass(frozen=True)
class Case:
    value: OptionValue
    before: tuple[str, ...] = ()  # other cases: without them it says nothing
    along: tuple[str, ...] = ()  # options that are set by it as well


_VALUES: dict[str, OptionValue | Case] = {
    "IP_LOCAL_PORT_RANGE": _PORTS - (1 << 32),
    "IPV6_ADDR_PREFERENCES": 0x401,  # IPV6_PREFER_SRC_TMP | IPV6_PREFER_SRC_HOME
    "SO_BINDTODEVICE": b"eth0\0",
    "SO_MARK": 77,
    "IP_TOS": Case(0x10, along=("SO_PRIORITY",)),
    "IPV6_TCLASS": 0x28,
    "SO_PRIORITY": 3,
    "IP_TTL": 33,
    "IPV6_UNICAST_HOPS": 44,
    "IP_MTU_DISCOVER": 2,
    "IPV6_MTU_DISCOVER": 3,
    "IPV6_AUTOFLOWLABEL": 0,
    "IP_OPTIONS": b"\1\1\1\1",  # IPOPT_NOOP
    "IPV6_HOPOPTS": _PAD,
    "IPV6_RTHDRDSTOPTS": _PAD,
    "IPV6_RTHDR": _ROUTE,
    "IPV6_DSTOPTS": _PAD,
    "SO_LINGER": struct.pack("=ii", 1, 7),
    "SO_RCVLOWAT": 99,
    "SO_RCVTIMEO": struct.pack("=qq", 8, 500_000),
    "SO_SNDTIMEO": struct.pack("=qq", 9, 0),
    "SO_BUSY_POLL": 50,
    "SO_PREFER_BUSY_POLL": Case(1, before=("SO_BUSY_POLL",)),
    "SO_MAX_PACING_RATE": (1 << 35).to_bytes(8, "little"),
    "SO_TXREHASH": 0,
    "SO_TIMESTAMPNS_NEW": Case(1, along=("SO_TIMESTAMP_NEW",)),
    "TCP_KEEPIDLE": 1234,
    "TCP_KEEPINTVL": 56,
    "TCP_KEEPCNT": 7,
    "TCP_SYNCNT": 3,
    "TCP_LINGER2": 20,
    "TCP_DEFER_ACCEPT": 7,
    "TCP_CONGESTION": b"reno".ljust(16, b"\0"),
    "TCP_USER_TIMEOUT": 90_000,
    "TCP_RTO_MAX_MS": 60_000,
    "TCP_RTO_MIN_US": 100_000,
    "TCP_DELACK_MAX_US": 80_000,
    "TCP_WINDOW_CLAMP": 40_000,
    "TCP_FASTOPEN": Case(5, along=("TCP_FASTOPEN_KEY",)),
    "TCP_FASTOPEN_KEY": Case(bytes(range(32)), before=("TCP_FASTOPEN",)),
    "TCP_NOTSENT_LOWAT": 20_000,
    "TCP_SAVE_SYN": 2,
    "TCP_TX_DELAY": 500,
    "TCP_QUICKACK": 0,
    "IP_MINTTL": 5,
    "IPV6_MINHOPCOUNT": 6,
    "SO_ATTACH_FILTER": _ACCEPT_ALL,
    "SO_LOCK_FILTER": Case(1, before=("SO_ATTACH_FILTER",)),
    "SO_RESERVE_MEM": 1 << 16,
    "SO_PEEK_OFF": 2,
    "SO_TIMESTAMPING": _TIMESTAMPS,
    "SO_TIMESTAMPING_NEW": Case(_TIMESTAMPS, along=("SO_TIMESTAMPING",)),
    "SO_INCOMING_CPU": 0,
    "F_SETSIG": Case(signal.SIGURG.value, before=("F_SETOWN_EX",)),  # which nobody dies of
    "F_SETOWN_EX": OWNER,
    "F_SETFL": Case(1, before=("F_SETOWN_EX",)),
}
# All others are switches, off on a fresh socket.
SWITCHES = frozenset(
    """
    SO_REUSEADDR IP_TRANSPARENT IPV6_V6ONLY IP_FREEBIND IP_BIND_ADDRESS_NO_PORT IPV6_FLOWINFO_SEND
    SO_KEEPALIVE SO_OOBINLINE SO_REUSEPORT SO_WIFI_STATUS SO_SELECT_ERR_QUEUE SO_TIMESTAMP
    SO_TIMESTAMPNS SO_TIMESTAMP_NEW TCP_THIN_LINEAR_TIMEOUTS TCP_FASTOPEN_NO_COOKIE TCP_INQ TCP_CORK
    TCP_NODELAY IP_PKTINFO IP_RECVTTL IP_RECVTOS IP_RECVOPTS IP_RETOPTS IP_PASSSEC
    IP_RECVORIGDSTADDR IP_CHECKSUM IP_RECVERR_RFC4884 IP_RECVERR IPV6_RECVPKTINFO IPV6_RECVHOPLIMIT
    IPV6_RECVTCLASS IPV6_2292PKTINFO IPV6_2292HOPLIMIT IPV6_FLOWINFO IPV6_RECVHOPOPTS
    IPV6_RECVRTHDR IPV6_RECVDSTOPTS IPV6_2292HOPOPTS IPV6_2292RTHDR IPV6_2292DSTOPTS
    IPV6_RECVORIGDSTADDR IPV6_RECVERR_RFC4884 IPV6_RECVERR SO_DONTROUTE
    """.split()
)


def case(option: Option) -> Case:
    value = 1 if option.name in SWITCHES else _VALUES[option.name]
    found = value if isinstance(value, Case) else Case(value)
    if option.rare:
        companion = "IPV6_RECVERR" if option.level == socket.IPPROTO_IPV6 else "IP_RECVERR"
        found = Case(found.value, (*found.before, companion), found.along)
    return found


CASES = {option.name: case(option) for option in TABLE if option.name in SWITCHES | _VALUES.keys()}
UNKNOWN = (SWITCHES | _VALUES.keys()) - BY_NAME.keys()


def give(sock: socket.socket, name: str) -> None:
    """Set the option as its case says. Raises `OSError`."""
    for other in CASES[name].before:
        give(sock, other)
    option = BY_NAME[name]
    set_one(sock, option.level, option.number, CASES[name].value)


def key(name: str) -> tuple[int, int]:
    return BY_NAME[name].level, BY_NAME[name].number


def with_all(name: str) -> set[tuple[int, int]]:
    """The numbers of what `give` changes."""
    one = CASES[name]
    return {key(name), *map(key, one.along)}.union(*map(with_all, one.before))


def of_family(family: int, kind: int) -> list[str]:
    """The options of CONNECTION, OPENING or LISTENING sockets."""
    return [one.name for one in TABLE if one.family in (0, family) and one.of <= kind]


@contextlib.contextmanager
def surviving_sigio() -> Iterator[None]:
    """The signal that O_ASYNC sends to its owner, which we are, does nothing here."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGIO, before)
