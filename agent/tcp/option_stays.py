"""The socket options that do not move with a TCP socket, each with the reason. No I/O.

Together with `agent.tcp.option_table` these are all the numbers of the uapi headers (Linux 6.18).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stays:
    """A number of getsockopt(2) or setsockopt(2) that is no option of the table, and why."""

    name: str
    number: int
    why: str


_FIELD = "is a field of the stream"
_UNSET = "cannot be set: the kernel tells a fact"
_UNREAD = "cannot be read back"
_DOES = "is an act, not a property"
_OTHERS = "is not for TCP"
_UNUSED = "is kept, but nothing in TCP looks at it"
_REPAIR = "is what dump and restore work with"
_KEYS = "sets keys: the check refuses such a connection"

STAYS: tuple[Stays, ...] = (
    Stays("SO_DEBUG", 1, _UNUSED),
    Stays("SO_TYPE", 3, _UNSET),
    Stays("SO_ERROR", 4, "to read it takes it from the process; of a closed stream it is a field"),
    Stays("SO_BROADCAST", 6, _UNUSED),
    Stays("SO_SNDBUF", 7, _FIELD),
    Stays("SO_RCVBUF", 8, _FIELD),
    Stays("SO_NO_CHECK", 11, _UNUSED),
    Stays("SO_BSDCOMPAT", 14, "does nothing"),
    Stays("SO_PASSCRED", 16, _OTHERS),
    Stays("SO_PEERCRED", 17, _UNSET),
    Stays("SO_SNDLOWAT", 19, _UNSET),
    Stays("SO_SECURITY_AUTHENTICATION", 22, "does nothing"),
    Stays("SO_SECURITY_ENCRYPTION_TRANSPORT", 23, "does nothing"),
    Stays("SO_SECURITY_ENCRYPTION_NETWORK", 24, "does nothing"),
    Stays("SO_DETACH_FILTER", 27, _DOES),
    Stays("SO_PEERNAME", 28, _FIELD),
    Stays("SO_ACCEPTCONN", 30, _UNSET),
    Stays("SO_PEERSEC", 31, _UNSET),
    Stays("SO_SNDBUFFORCE", 32, _FIELD),
    Stays("SO_RCVBUFFORCE", 33, _FIELD),
    Stays("SO_PASSSEC", 34, _OTHERS),
    Stays("SO_PROTOCOL", 38, _UNSET),
    Stays("SO_DOMAIN", 39, _UNSET),
    Stays("SO_RXQ_OVFL", 40, _UNUSED),
    Stays("SO_NOFCS", 43, _UNUSED),
    Stays("SO_BPF_EXTENSIONS", 48, _UNSET),
    Stays("SO_ATTACH_BPF", 50, "cannot be read back: the dump refuses"),
    Stays("SO_ATTACH_REUSEPORT_CBPF", 51, _UNREAD),
    Stays("SO_ATTACH_REUSEPORT_EBPF", 52, _UNREAD),
    Stays("SO_CNX_ADVICE", 53, _DOES),
    Stays("SO_MEMINFO", 55, _UNSET),
    Stays("SO_INCOMING_NAPI_ID", 56, _UNSET),
    Stays("SO_COOKIE", 57, _UNSET),
    Stays("SO_PEERGROUPS", 59, _UNSET),
    Stays("SO_ZEROCOPY", 60, "counts what the program waits for: the check refuses it"),
    Stays("SO_TXTIME", 61, "TCP has no use for it, and that it is on cannot be read back"),
    Stays("SO_BINDTOIFINDEX", 62, "is SO_BINDTODEVICE by an index, which is another elsewhere"),
    Stays("SO_RCVTIMEO_NEW", 66, "is SO_RCVTIMEO in another form"),
    Stays("SO_SNDTIMEO_NEW", 67, "is SO_SNDTIMEO in another form"),
    Stays("SO_DETACH_REUSEPORT_BPF", 68, _DOES),
    Stays("SO_BUSY_POLL_BUDGET", 70, _UNREAD),
    Stays("SO_NETNS_COOKIE", 71, _UNSET),
    Stays("SO_BUF_LOCK", 72, _FIELD),
    Stays("SO_RCVMARK", 75, _UNUSED),
    Stays("SO_PASSPIDFD", 76, _OTHERS),
    Stays("SO_PEERPIDFD", 77, _UNSET),
    Stays("SO_DEVMEM_LINEAR", 78, _DOES),
    Stays("SO_DEVMEM_DMABUF", 79, _DOES),
    Stays("SO_DEVMEM_DONTNEED", 80, _DOES),
    Stays("SO_RCVPRIORITY", 82, _UNUSED),
    Stays("SO_PASSRIGHTS", 83, _OTHERS),
    Stays("SO_INQ", 84, _OTHERS),
    Stays("TCP_MAXSEG", 2, _FIELD),
    Stays("TCP_INFO", 11, _UNSET),
    Stays("TCP_MD5SIG", 14, _KEYS),
    Stays("TCP_THIN_DUPACK", 17, "does nothing since 4.11"),
    Stays("TCP_REPAIR", 19, _REPAIR),
    Stays("TCP_REPAIR_QUEUE", 20, _REPAIR),
    Stays("TCP_QUEUE_SEQ", 21, _REPAIR),
    Stays("TCP_REPAIR_OPTIONS", 22, _REPAIR),
    Stays("TCP_TIMESTAMP", 24, _REPAIR),
    Stays("TCP_CC_INFO", 26, _UNSET),
    Stays("TCP_SAVED_SYN", 28, "cannot be set, and to read it takes it from the process"),
    Stays("TCP_REPAIR_WINDOW", 29, _REPAIR),
    Stays("TCP_FASTOPEN_CONNECT", 30, "is used up by connect(), and would put off ours"),
    Stays("TCP_ULP", 31, "puts another protocol on top: the check refuses such a connection"),
    Stays("TCP_MD5SIG_EXT", 32, _KEYS),
    Stays("TCP_ZEROCOPY_RECEIVE", 35, _DOES),
    Stays("TCP_AO_ADD_KEY", 38, _KEYS),
    Stays("TCP_AO_DEL_KEY", 39, _DOES),
    Stays("TCP_AO_INFO", 40, _KEYS),
    Stays("TCP_AO_GET_KEYS", 41, _KEYS),
    Stays("TCP_AO_REPAIR", 42, _KEYS),
    Stays("TCP_IS_MPTCP", 43, _UNSET),
    Stays("IP_HDRINCL", 3, _OTHERS),
    Stays("IP_ROUTER_ALERT", 5, _OTHERS),
    Stays("IP_PKTOPTIONS", 9, "tells of the last packet received"),
    Stays("IP_MTU", 14, _UNSET),
    Stays("IP_IPSEC_POLICY", 16, _UNREAD),
    Stays("IP_XFRM_POLICY", 17, _UNREAD),
    Stays("IP_NODEFRAG", 22, _OTHERS),
    Stays("IP_RECVFRAGSIZE", 25, _OTHERS),
    Stays("IP_MULTICAST_IF", 32, _OTHERS),
    Stays("IP_MULTICAST_TTL", 33, _OTHERS),
    Stays("IP_MULTICAST_LOOP", 34, _UNUSED),
    Stays("IP_ADD_MEMBERSHIP", 35, _OTHERS),
    Stays("IP_DROP_MEMBERSHIP", 36, _OTHERS),
    Stays("IP_UNBLOCK_SOURCE", 37, _OTHERS),
    Stays("IP_BLOCK_SOURCE", 38, _OTHERS),
    Stays("IP_ADD_SOURCE_MEMBERSHIP", 39, _OTHERS),
    Stays("IP_DROP_SOURCE_MEMBERSHIP", 40, _OTHERS),
    Stays("IP_MSFILTER", 41, _OTHERS),
    Stays("IP_MULTICAST_ALL", 49, _UNUSED),
    Stays("IP_UNICAST_IF", 50, _UNUSED),
    Stays("IP_PROTOCOL", 52, _UNSET),
    Stays("IPV6_ADDRFORM", 1, _DOES),
    Stays("IPV6_2292PKTOPTIONS", 6, "tells of the last packet received"),
    Stays("IPV6_CHECKSUM", 7, _OTHERS),
    Stays("IPV6_NEXTHOP", 9, _OTHERS),
    Stays("IPV6_AUTHHDR", 10, "does nothing"),
    Stays("IPV6_MULTICAST_IF", 17, _OTHERS),
    Stays("IPV6_MULTICAST_HOPS", 18, _OTHERS),
    Stays("IPV6_MULTICAST_LOOP", 19, _UNUSED),
    Stays("IPV6_ADD_MEMBERSHIP", 20, _OTHERS),
    Stays("IPV6_DROP_MEMBERSHIP", 21, _OTHERS),
    Stays("IPV6_ROUTER_ALERT", 22, _OTHERS),
    Stays("IPV6_MTU", 24, _UNUSED),
    Stays("IPV6_JOIN_ANYCAST", 27, _OTHERS),
    Stays("IPV6_LEAVE_ANYCAST", 28, _OTHERS),
    Stays("IPV6_MULTICAST_ALL", 29, _UNUSED),
    Stays("IPV6_ROUTER_ALERT_ISOLATE", 30, _UNUSED),
    Stays("IPV6_FLOWLABEL_MGR", 32, "leases a flow label of this host"),
    Stays("IPV6_IPSEC_POLICY", 34, _UNREAD),
    Stays("IPV6_XFRM_POLICY", 35, _UNREAD),
    Stays("IPV6_HDRINCL", 36, _OTHERS),
    Stays("IPV6_PKTINFO", 50, _OTHERS),
    Stays("IPV6_HOPLIMIT", 52, _OTHERS),
    Stays("IPV6_RECVPATHMTU", 60, _UNUSED),
    Stays("IPV6_PATHMTU", 61, _UNSET),
    Stays("IPV6_DONTFRAG", 62, _UNUSED),
    Stays("IPV6_TRANSPARENT", 75, "is IP_TRANSPARENT"),
    Stays("IPV6_UNICAST_IF", 76, _UNUSED),
    Stays("IPV6_RECVFRAGSIZE", 77, _UNUSED),
    Stays("IPV6_FREEBIND", 78, "is IP_FREEBIND"),
)
