"""Constants and structures of the Linux user API, under their C names, with the header cited."""

from __future__ import annotations

import struct
from typing import Final

# include/uapi/linux/tcp.h
TCP_NODELAY: Final = 1
TCP_MAXSEG: Final = 2
TCP_CORK: Final = 3
TCP_KEEPIDLE: Final = 4
TCP_KEEPINTVL: Final = 5
TCP_KEEPCNT: Final = 6
TCP_SYNCNT: Final = 7
TCP_LINGER2: Final = 8
TCP_DEFER_ACCEPT: Final = 9
TCP_WINDOW_CLAMP: Final = 10
TCP_INFO: Final = 11
TCP_QUICKACK: Final = 12
TCP_CONGESTION: Final = 13
TCP_THIN_LINEAR_TIMEOUTS: Final = 16
TCP_USER_TIMEOUT: Final = 18
TCP_REPAIR: Final = 19
TCP_REPAIR_QUEUE: Final = 20
TCP_QUEUE_SEQ: Final = 21
TCP_REPAIR_OPTIONS: Final = 22
TCP_FASTOPEN: Final = 23
TCP_TIMESTAMP: Final = 24
TCP_NOTSENT_LOWAT: Final = 25
TCP_SAVE_SYN: Final = 27
TCP_REPAIR_WINDOW: Final = 29
TCP_ULP: Final = 31
TCP_FASTOPEN_KEY: Final = 33
TCP_FASTOPEN_NO_COOKIE: Final = 34
TCP_INQ: Final = 36
TCP_TX_DELAY: Final = 37
TCP_RTO_MAX_MS: Final = 44  # 6.15, as the next two
TCP_RTO_MIN_US: Final = 45
TCP_DELACK_MAX_US: Final = 46

TCP_REPAIR_ON: Final = 1
TCP_REPAIR_OFF: Final = 0
TCP_REPAIR_OFF_NO_WP: Final = -1

# enum in include/uapi/linux/tcp.h
TCP_NO_QUEUE: Final = 0
TCP_RECV_QUEUE: Final = 1
TCP_SEND_QUEUE: Final = 2

TCPI_OPT_TIMESTAMPS: Final = 1
TCPI_OPT_SACK: Final = 2
TCPI_OPT_WSCALE: Final = 4

# include/net/tcp.h: option kinds, as TCP_REPAIR_OPTIONS takes them
TCPOPT_MSS: Final = 2
TCPOPT_WINDOW: Final = 3
TCPOPT_SACK_PERM: Final = 4
TCPOPT_TIMESTAMP: Final = 8

# include/net/tcp_states.h
TCP_ESTABLISHED: Final = 1
TCP_SYN_SENT: Final = 2
TCP_SYN_RECV: Final = 3
TCP_FIN_WAIT1: Final = 4
TCP_FIN_WAIT2: Final = 5
TCP_TIME_WAIT: Final = 6
TCP_CLOSE: Final = 7
TCP_CLOSE_WAIT: Final = 8
TCP_LAST_ACK: Final = 9
TCP_LISTEN: Final = 10
TCP_CLOSING: Final = 11

STATE_NAMES: Final = {
    TCP_ESTABLISHED: "ESTABLISHED",
    TCP_SYN_SENT: "SYN_SENT",
    TCP_SYN_RECV: "SYN_RECV",
    TCP_FIN_WAIT1: "FIN_WAIT1",
    TCP_FIN_WAIT2: "FIN_WAIT2",
    TCP_TIME_WAIT: "TIME_WAIT",
    TCP_CLOSE: "CLOSE",
    TCP_CLOSE_WAIT: "CLOSE_WAIT",
    TCP_LAST_ACK: "LAST_ACK",
    TCP_LISTEN: "LISTEN",
    TCP_CLOSING: "CLOSING",
}

# struct tcp_repair_opt { __u32 opt_code; __u32 opt_val; }
REPAIR_OPT: Final = struct.Struct("=II")
# struct tcp_repair_window { __u32 snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup; }
REPAIR_WINDOW: Final = struct.Struct("=IIIII")
# struct tcp_info, the fields up to tcpi_segs_in (linux/tcp.h); bytes 6 and 7 are bit fields
TCP_INFO_SIZE: Final = 144
TCP_INFO_MAX_PACING_RATE: Final = slice(112, 120)  # tcpi_max_pacing_rate, 3.15
TCP_INFO_SEGS_IN_OFFSET: Final = 140

# include/uapi/asm-generic/socket.h
SO_DEBUG: Final = 1
SO_REUSEADDR: Final = 2
SO_DONTROUTE: Final = 5
SO_BROADCAST: Final = 6
SO_SNDBUF: Final = 7
SO_RCVBUF: Final = 8
SO_KEEPALIVE: Final = 9
SO_OOBINLINE: Final = 10
SO_PRIORITY: Final = 12
SO_LINGER: Final = 13
SO_REUSEPORT: Final = 15
SO_RCVLOWAT: Final = 18
SO_RCVTIMEO: Final = 20
SO_SNDTIMEO: Final = 21
SO_BINDTODEVICE: Final = 25
SO_ATTACH_FILTER: Final = 26  # reading it is SO_GET_FILTER
SO_TIMESTAMP: Final = 29
SO_ACCEPTCONN: Final = 30
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_TIMESTAMPNS: Final = 35
SO_MARK: Final = 36
SO_TIMESTAMPING: Final = 37
SO_PROTOCOL: Final = 38
SO_DOMAIN: Final = 39
SO_WIFI_STATUS: Final = 41
SO_PEEK_OFF: Final = 42  # for TCP 6.9
SO_LOCK_FILTER: Final = 44
SO_SELECT_ERR_QUEUE: Final = 45
SO_BUSY_POLL: Final = 46
SO_MAX_PACING_RATE: Final = 47
SO_INCOMING_CPU: Final = 49
SO_MEMINFO: Final = 55  # 4.12
SO_TIMESTAMP_NEW: Final = 63
SO_TIMESTAMPNS_NEW: Final = 64
SO_TIMESTAMPING_NEW: Final = 65
SO_PREFER_BUSY_POLL: Final = 69
SO_BUF_LOCK: Final = 72  # 5.15, commit 04190bf8944d
SO_RESERVE_MEM: Final = 73
SO_TXREHASH: Final = 74
SOCK_SNDBUF_LOCK: Final = 1
SOCK_RCVBUF_LOCK: Final = 2

# include/uapi/linux/net_tstamp.h
SOF_TIMESTAMPING_OPT_ID: Final = 1 << 7
SOF_TIMESTAMPING_OPT_ID_TCP: Final = 1 << 16

# include/uapi/linux/filter.h: struct sock_filter { __u16 code; __u8 jt, jf; __u32 k; }
SOCK_FILTER_SIZE: Final = 8
BPF_MAXINSNS: Final = 4096

# include/uapi/linux/sock_diag.h: __u32 of SO_MEMINFO: RMEM_ALLOC, RCVBUF, WMEM_ALLOC, SNDBUF,
# FWD_ALLOC, WMEM_QUEUED, OPTMEM, BACKLOG, DROPS
MEMINFO: Final = struct.Struct("=9I")

# include/uapi/linux/in.h, in6.h
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_OPTIONS: Final = 4
IP_RECVOPTS: Final = 6
IP_RETOPTS: Final = 7
IP_PKTINFO: Final = 8
IP_PKTOPTIONS: Final = 9
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_FREEBIND: Final = 15
IP_PASSSEC: Final = 18
IP_TRANSPARENT: Final = 19
IP_RECVORIGDSTADDR: Final = 20
IP_MINTTL: Final = 21
IP_CHECKSUM: Final = 23
IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_RECVERR_RFC4884: Final = 26
IP_LOCAL_PORT_RANGE: Final = 51  # 6.3
IPV6_2292PKTINFO: Final = 2
IPV6_2292HOPOPTS: Final = 3
IPV6_2292DSTOPTS: Final = 4
IPV6_2292RTHDR: Final = 5
IPV6_2292PKTOPTIONS: Final = 6
IPV6_2292HOPLIMIT: Final = 8
IPV6_FLOWINFO: Final = 11
IPV6_UNICAST_HOPS: Final = 16
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVERR: Final = 25
IPV6_V6ONLY: Final = 26
IPV6_RECVERR_RFC4884: Final = 31
IPV6_FLOWINFO_SEND: Final = 33
IPV6_RECVPKTINFO: Final = 49
IPV6_RECVHOPLIMIT: Final = 51
IPV6_RECVHOPOPTS: Final = 53
IPV6_HOPOPTS: Final = 54
IPV6_RTHDRDSTOPTS: Final = 55
IPV6_RECVRTHDR: Final = 56
IPV6_RTHDR: Final = 57
IPV6_RECVDSTOPTS: Final = 58
IPV6_DSTOPTS: Final = 59
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
IPV6_AUTOFLOWLABEL: Final = 70
IPV6_ADDR_PREFERENCES: Final = 72
IPV6_MINHOPCOUNT: Final = 73
IPV6_RECVORIGDSTADDR: Final = 74
IPV6_TRANSPARENT: Final = 75
IPV6_FREEBIND: Final = 78
IPPROTO_MPTCP: Final = 262

# include/uapi/asm-generic/fcntl.h
F_GETFL: Final = 3
F_SETFL: Final = 4
F_SETSIG: Final = 10
F_GETSIG: Final = 11
F_SETOWN_EX: Final = 15
F_GETOWN_EX: Final = 16
O_ASYNC: Final = 0o20000
# struct f_owner_ex { int type; __kernel_pid_t pid; }
F_OWNER_EX: Final = struct.Struct("=ii")

# include/uapi/linux/sockios.h, asm-generic/ioctls.h
SIOCINQ: Final = 0x541B
SIOCOUTQ: Final = 0x5411
SIOCOUTQNSD: Final = 0x894B
