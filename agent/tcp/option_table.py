"""The socket options of a TCP socket: those that move with it, and why the others do not. No I/O.

One table, from which dump, restore, the checks and docs/tcp-engine.md come. Names and numbers are
the C ones of the uapi headers. What a kernel has is found out at run time, see `agent.tcp.options`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from agent.kernel import uapi

OptionValue = int | bytes
# How much of the table a socket can still use: once it is connected, nothing looks at what bind(),
# connect() or listen() go by.
CONNECTION, OPENING, LISTENING = range(3)
MAX_FILTER = 512  # instructions of a socket's filter, of the 4096 that the kernel takes

TCP, SOL, IP, IPV6 = (
    socket.IPPROTO_TCP,
    socket.SOL_SOCKET,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
# No level of setsockopt(2): what fcntl(2) sets for an open file description. The number is the
# command that sets it.
FCNTL = 0xFC00
_LEVELS = {"TCP": TCP, "SO": SOL, "IP": IP, "IPV6": IPV6, "F": FCNTL}


@dataclass(frozen=True, slots=True)
class Option:
    """An option that moves. Options are set in the order of the table.

    `least` and `most` bound an int, `size` is the most bytes of a value that is none (0: an int),
    which may be restricted to some `lengths`.
    """

    name: str
    level: int
    number: int
    least: int
    most: int
    size: int
    lengths: tuple[int, ...]
    family: int  # the one family it exists for, or 0
    late: bool  # set by `release`, after the stream has left repair mode and is in its state again
    of: int  # CONNECTION, OPENING or LISTENING: read of sockets that are so, and of those behind
    # The readings that cannot stay quiet where it is set: without one it need not be read
    seen_by: tuple[str, ...]
    rare: bool  # a connection that is quiet in all of `ANCILLARY` does not use it: it is not read
    # What a new socket has on a host whose sysctl(8) was left alone, where it keeps it for life
    fixed: OptionValue | None


def level_of(name: str) -> int:
    """The level of setsockopt(2) that an option's name says."""
    return _LEVELS[name.partition("_")[0]]


def _option(
    name: str,
    bounds: tuple[int, int] = (0, 1),
    *,
    size: int = 0,
    lengths: tuple[int, ...] = (),
    late: bool = False,
    of: int = CONNECTION,
    seen_by: tuple[str, ...] = (),
    rare: bool = False,
    fixed: OptionValue | None = None,
) -> Option:
    level = level_of(name)
    family = socket.AF_INET6 if level == IPV6 else 0
    number = getattr(uapi, name)
    return Option(
        name,
        level,
        number,
        *bounds,
        size or max(lengths, default=0),
        lengths,
        family,
        late,
        of,
        seen_by,
        rare,
        fixed,
    )


_INT = (-(1 << 31), (1 << 31) - 1)
_COUNT = (0, (1 << 31) - 1)
_POSITIVE = (1, (1 << 31) - 1)
_BYTE = (0, 255)
_PKTOPTIONS = ("IP_PKTOPTIONS",)
_2292PKTOPTIONS = ("IPV6_2292PKTOPTIONS",)
_OWNER = ("F_SETOWN_EX",)
_OPTION_MEMORY = ("SK_MEMINFO_OPTMEM",)

TABLE: tuple[Option, ...] = (
    # Leaving repair mode clears the first; the second the restore needs for itself.
    _option("SO_REUSEADDR", (0, 2), late=True),
    _option("IP_TRANSPARENT", late=True),
    _option("IPV6_V6ONLY", of=LISTENING, fixed=0),
    _option("IP_FREEBIND", of=OPENING),
    _option("IP_BIND_ADDRESS_NO_PORT", of=LISTENING),
    _option("IP_LOCAL_PORT_RANGE", _INT, of=LISTENING),
    _option("IPV6_ADDR_PREFERENCES", (0, 0xFFF), of=LISTENING),
    _option("SO_BINDTODEVICE", size=16),
    _option("SO_MARK", _INT),
    # IP_TOS sets the priority, too.
    _option("IP_TOS", _BYTE),
    _option("IPV6_TCLASS", _BYTE),
    _option("SO_PRIORITY", _INT),
    _option("IP_TTL", _BYTE),
    _option("IPV6_UNICAST_HOPS", _BYTE),
    _option("IP_MTU_DISCOVER", (0, 5), fixed=1),
    _option("IPV6_MTU_DISCOVER", (0, 5)),
    _option("IPV6_AUTOFLOWLABEL"),
    _option("IPV6_FLOWINFO_SEND"),
    _option("IP_OPTIONS", size=40),
    _option("IPV6_HOPOPTS", size=256, seen_by=_OPTION_MEMORY),
    _option("IPV6_RTHDRDSTOPTS", size=256, seen_by=_OPTION_MEMORY),
    _option("IPV6_RTHDR", size=256, seen_by=_OPTION_MEMORY),
    _option("IPV6_DSTOPTS", size=256, seen_by=_OPTION_MEMORY),
    _option("SO_KEEPALIVE"),
    _option("SO_OOBINLINE"),
    _option("SO_LINGER", lengths=(8,)),
    _option("SO_REUSEPORT"),
    _option("SO_INCOMING_CPU", _INT, of=LISTENING),
    # 0 with a connection that an MPTCP listener gave; it is 1 then, and as such it is set.
    _option("SO_RCVLOWAT", _COUNT),
    _option("SO_RCVTIMEO", lengths=(16,)),
    _option("SO_SNDTIMEO", lengths=(16,)),
    _option("SO_BUSY_POLL", _COUNT, fixed=0),
    _option("SO_PREFER_BUSY_POLL", seen_by=("SO_BUSY_POLL",)),
    _option("SO_MAX_PACING_RATE", lengths=(4, 8), seen_by=("tcpi_max_pacing_rate",)),
    _option("SO_TXREHASH", fixed=1),
    _option("SO_WIFI_STATUS", rare=True),
    _option("SO_SELECT_ERR_QUEUE", rare=True),
    _option("SO_TIMESTAMP"),
    _option("SO_TIMESTAMPNS"),
    _option("SO_TIMESTAMP_NEW"),
    _option("SO_TIMESTAMPNS_NEW", seen_by=("SO_TIMESTAMP_NEW",)),
    _option("TCP_KEEPIDLE", (1, 32767)),
    _option("TCP_KEEPINTVL", (1, 32767)),
    _option("TCP_KEEPCNT", (1, 127)),
    _option("TCP_SYNCNT", (1, 255), of=OPENING),
    _option("TCP_LINGER2", (-1, (1 << 31) - 1)),
    _option("TCP_DEFER_ACCEPT", _COUNT, of=OPENING),
    _option("TCP_CONGESTION", size=16, fixed=b"cubic".ljust(16, b"\0")),
    _option("TCP_THIN_LINEAR_TIMEOUTS"),
    _option("TCP_USER_TIMEOUT", _COUNT),
    _option("TCP_RTO_MAX_MS", _POSITIVE, fixed=120_000),
    _option("TCP_RTO_MIN_US", _POSITIVE, fixed=200_000),
    _option("TCP_DELACK_MAX_US", _POSITIVE),
    _option("TCP_WINDOW_CLAMP", _COUNT, of=LISTENING),  # of a connection it is a field
    _option("TCP_FASTOPEN", _COUNT, of=LISTENING),
    _option("TCP_FASTOPEN_NO_COOKIE", of=LISTENING),
    _option("TCP_FASTOPEN_KEY", lengths=(16, 32), of=LISTENING, seen_by=("TCP_FASTOPEN",),
            fixed=b""),
    _option("TCP_NOTSENT_LOWAT", _INT),
    _option("TCP_SAVE_SYN", (0, 2), of=OPENING),
    _option("TCP_INQ"),
    _option("TCP_TX_DELAY", (0, (1 << 28) - 1)),
    _option("TCP_CORK"),
    _option("TCP_NODELAY"),
    _option("IP_PKTINFO", seen_by=_PKTOPTIONS),
    _option("IP_RECVTTL", seen_by=_PKTOPTIONS),
    _option("IP_RECVTOS", seen_by=_PKTOPTIONS),
    _option("IP_RECVOPTS", rare=True),
    _option("IP_RETOPTS", rare=True),
    _option("IP_PASSSEC", rare=True),
    _option("IP_RECVORIGDSTADDR", rare=True),
    _option("IP_CHECKSUM", rare=True),
    _option("IP_RECVERR_RFC4884", rare=True),
    _option("IP_RECVERR"),
    _option("IPV6_RECVPKTINFO", seen_by=_2292PKTOPTIONS),
    _option("IPV6_RECVHOPLIMIT", seen_by=_2292PKTOPTIONS),
    _option("IPV6_RECVTCLASS", seen_by=_2292PKTOPTIONS),
    _option("IPV6_2292PKTINFO", seen_by=_2292PKTOPTIONS),
    _option("IPV6_2292HOPLIMIT", seen_by=_2292PKTOPTIONS),
    _option("IPV6_FLOWINFO"),
    _option("IPV6_RECVHOPOPTS", rare=True),
    _option("IPV6_RECVRTHDR", rare=True),
    _option("IPV6_RECVDSTOPTS", rare=True),
    _option("IPV6_2292HOPOPTS", rare=True),
    _option("IPV6_2292RTHDR", rare=True),
    _option("IPV6_2292DSTOPTS", rare=True),
    _option("IPV6_RECVORIGDSTADDR", rare=True),
    _option("IPV6_RECVERR_RFC4884", rare=True),
    _option("IPV6_RECVERR"),
    _option("TCP_QUICKACK", late=True),  # listen() sets it back
    # What a state is brought back with would be held up by these.
    _option("SO_DONTROUTE", late=True),
    _option("IP_MINTTL", _BYTE, late=True),
    _option("IPV6_MINHOPCOUNT", _BYTE, late=True),
    _option("SO_ATTACH_FILTER", size=MAX_FILTER * uapi.SOCK_FILTER_SIZE, late=True,
            seen_by=_OPTION_MEMORY),
    _option("SO_LOCK_FILTER", late=True, seen_by=_OPTION_MEMORY),
    _option("SO_RESERVE_MEM", _COUNT, late=True, seen_by=("SK_MEMINFO_FWD_ALLOC",)),
    _option("SO_PEEK_OFF", (-1, (1 << 31) - 1), late=True),
    # SOF_TIMESTAMPING_OPT_ID can be asked of a connection only; the second of the two decides for
    # all timestamps in which form they come.
    _option("SO_TIMESTAMPING", lengths=(4, 8), late=True),
    _option("SO_TIMESTAMPING_NEW", lengths=(4, 8), late=True, seen_by=("SO_TIMESTAMPING",)),
    # The owner's process has to exist.
    _option("F_SETSIG", (0, 64), late=True, seen_by=_OWNER),
    _option("F_SETOWN_EX", lengths=(uapi.F_OWNER_EX.size,), late=True),
    _option("F_SETFL", late=True, seen_by=_OWNER),  # O_ASYNC of it
)  # fmt: skip

# Readings that tell of several options at once: the control messages of the last packet, one for
# each option that is on. (level, number, size)
READINGS = {
    "IP_PKTOPTIONS": (IP, uapi.IP_PKTOPTIONS, 64),
    "IPV6_2292PKTOPTIONS": (IPV6, uapi.IPV6_2292PKTOPTIONS, 64),
}
# The others come with what every dump reads. Memory that options were given, that is: filters and
# extension headers; memory set aside for the socket, which SO_RESERVE_MEM adds to; and TCP_INFO.
COUNTERS = ("SK_MEMINFO_OPTMEM", "SK_MEMINFO_FWD_ALLOC", "tcpi_max_pacing_rate")
# With these a connection has messages of its own (an error queue, or options of packets received),
# to which the rare options add.
ANCILLARY = frozenset(
    {
        "IP_RECVERR", "IPV6_RECVERR", "SO_TIMESTAMPING", "IP_PKTOPTIONS", "IPV6_2292PKTOPTIONS",
        "IPV6_FLOWINFO",
    }
)  # fmt: skip

BY_NAME = {option.name: option for option in TABLE}
BY_NUMBER = {(option.level, option.number): option for option in TABLE}
