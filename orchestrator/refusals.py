"""Every reason for which the check refuses a migration: its code, its words, and a fix.

The codes are stable; scripts may rely on them. `TABLE` is in the order of importance: the most
fundamental first, which is the one that a JSON report shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.cordon import Cordoned
from agent.errors import Field

SHOWN = 10  # of one code; the last then tells how many more there are


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why the migration cannot be, and what to do about it."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Words:
    """`str.format` patterns over the fields of a refusal."""

    message: str
    hint: str


TABLE: dict[str, Words] = {
    # --- the hosts
    "same-machine": Words(
        "{source} and {destination} are the same machine",
        "Give two different hosts; see where each name leads with `ssh -G NAME`.",
    ),
    "capabilities-missing": Words(
        "the agent on {host} runs as user {uid} without {names}",
        "Log in to {host} as root, or as a user whose session has these capabilities.",
    ),
    "architecture": Words(
        "{source} is {theirs}, {destination} is {ours}",
        "A running process can only move to a machine of the same architecture.",
    ),
    "cordoned": Words(Cordoned.template, Cordoned.hint_template),
    "criu-missing": Words(
        "CRIU is not installed on {host}",
        "Install CRIU 4.2 or newer on {host} (Debian: package criu of forky or sid).",
    ),
    "criu-too-old": Words(
        "CRIU {version} on {host} is too old for its kernel, {kernel}: {reason}",
        "Install CRIU 4.2 or newer on {host} (Debian: package criu of forky or sid).",
    ),
    "criu-unusable": Words(
        "CRIU does not work on {host}: {detail}",
        "Run `criu check -v4` on {host} and mend what it names.",
    ),
    "nftables": Words(
        "nftables cannot be used on {host}: {detail}",
        "Install nftables and its library (Debian: libnftables1) on {host}, with a kernel "
        "that has nf_tables.",
    ),
    "sock-diag": Words(
        "the kernel of {host} does not list its sockets: {detail}",
        "Load the modules on {host}: `modprobe -a inet_diag tcp_diag unix_diag`.",
    ),
    "tcp-repair": Words(
        "TCP connections cannot be repaired on {host}: {detail}",
        "A kernel with TCP_REPAIR_WINDOW (4.8) and CAP_NET_ADMIN are needed on {host}.",
    ),
    "raw-sockets": Words(
        "the agent on {host} cannot open a raw socket: {detail}",
        "Give it CAP_NET_RAW on {host}.",
    ),
    "packet-sockets": Words(
        "the agent on {host} cannot open a packet socket: {detail}",
        "Give it CAP_NET_RAW on {host}, and a kernel with AF_PACKET (CONFIG_PACKET).",
    ),
    "no-userfaultfd": Words(
        "memory cannot go apart from the process: userfaultfd does not work on {host}: {detail}",
        "Use `--memory stop`, or give the agent on {host} CAP_SYS_PTRACE and a kernel with "
        "CONFIG_USERFAULTFD (4.11 or later).",
    ),
    "choose-pid": Words(
        "no process can be given its old PID on {host}: {detail}",
        "The agent on {host} needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and in a container "
        "a seccomp profile that lets clone3 pass.",
    ),
    "images-dir": Words(
        "the images cannot be kept in {path} on {host}: {detail}",
        "Make room for a directory there that only its owner may read, or name another one.",
    ),
    "cpu-features": Words(
        "the processor of {destination} lacks what programs on {source} may use: {flags}",
        "Move to a machine with at least the same instruction sets, or hide these from the "
        "guests of both hosts.",
    ),
    # --- the process
    "traced": Words(
        "process {pid} ({comm}) is traced by process {tracer}",
        "End the debugger or strace first.",
    ),
    "stopped": Words(
        "process {pid} ({comm}) is stopped",
        "Continue it first: `kill -CONT {pid}`.",
    ),
    "leader-ended": Words(
        "the main thread of process {pid} ({comm}) has ended while others go on",
        "CRIU cannot move such a process; let the program keep its main thread.",
    ),
    "namespace": Words(
        "process {pid} ({comm}) runs in another {kind} namespace than the agent on {source}",
        "Log in inside its container, or start it without one (in a systemd unit: without "
        "PrivateTmp=, ProtectSystem= and the like).",
    ),
    "session-outside": Words(
        "the session of process {pid} ({comm}) was made outside of its PID namespace",
        "Start it in a session of its own: `setsid PROGRAM`.",
    ),
    "limits-unreadable": Words(
        "CRIU may not read the limits of process {pid} ({comm}), which runs as user {user}",
        "The login at the source needs CAP_SYS_RESOURCE, which it lacks (prlimit(2)); or run the "
        "whole program as one user.",
    ),
    "terminal": Words(
        "{thing} is the terminal {path}",
        "Start the program away from a terminal: `setsid PROGRAM </dev/null >LOG 2>&1 &`, "
        "or as a service.",
    ),
    "foreign-mount": Words(
        "{thing} is {path}, of a mount that process does not have",
        "It was inherited or passed from elsewhere; close it, or start the program without it.",
    ),
    "descriptor": Words(
        "{thing} is of a kind that cannot move: {what}",
        "Let the program do without it (many can run without io_uring or perf), or close it.",
    ),
    "device": Words(
        "{thing} is the device {path}",
        "A device stays with its host; close it, or start the program without it.",
    ),
    "pipe-outside": Words(
        "{thing} is a pipe ({path}) whose other end is in {other}, which stays",
        "Move the process that owns both, or let the program write to a file or a socket.",
    ),
    "unix-outside": Words(
        "{thing} is a unix socket connected to {other}, which stays",
        "Let the program close this connection (log by UDP or to a file, say), or move both.",
    ),
    "shared-socket": Words(
        "{thing} is a socket that {other} has open, too, and that one stays",
        "Give the PID of the process that started both, so that all of them move.",
    ),
    "deleted-file": Words(
        "{thing} is of {path}, which is deleted and too large to take along ({mebibytes} MiB)",
        "Let the program close it; up to 64 MiB of a deleted file can move.",
    ),
    "unlinked-file": Words(
        "{thing} is of {path}, which is gone under this name while it has others",
        "Link the file back under this name, or let the program open it anew.",
    ),
    "replaced-file": Words(
        "{thing} is of {path}, and another file has taken that name",
        "Let the program open the new one (after an upgrade: restart it), or put the old back.",
    ),
    "shared-mapping": Words(
        "{thing} writes to {path}, which is not on storage that both hosts share",
        "What a program writes to a shared mapping stays in the file; keep the file on NFS or "
        "the like, or let the program do without it.",
    ),
    "sysv-memory": Words(
        "{thing} is shared memory of System V ({what})",
        "Let the program use POSIX or anonymous shared memory; System V's cannot move yet.",
    ),
    "mapping": Words(
        "{thing} cannot move: {what}",
        "Let the program do without it.",
    ),
    # --- sockets
    "mptcp": Words(
        "{thing} is an MPTCP socket ({name}), which cannot move",
        "Use plain TCP. Programs in Go from 1.24 on listen with MPTCP: start them with "
        "GODEBUG=multipathtcp=0.",
    ),
    "kernel-tls": Words(
        "{thing} is a connection with TLS in the kernel ({name}), whose keys cannot be read back",
        "Switch kernel TLS off in the program (OpenSSL: without SSL_OP_ENABLE_KTLS).",
    ),
    "tcp-md5": Words(
        "{thing} is a TCP socket of port {port} with MD5 keys, which cannot be read back",
        "Connections with TCP MD5 (BGP, mostly) have to be made anew on the other host.",
    ),
    "tcp-ao": Words(
        "{thing} is a TCP socket ({name}) with authentication keys (TCP-AO)",
        "Connections with TCP-AO have to be made anew on the other host.",
    ),
    "zero-copy": Words(
        "{thing} is a TCP socket ({name}) with SO_ZEROCOPY, whose notifications cannot move",
        "Let the program send without MSG_ZEROCOPY.",
    ),
    "raw-socket": Words(
        "{thing} is a raw socket",
        "Raw sockets see the traffic of their own host; stop what uses it, or start it anew.",
    ),
    "packet-socket": Words(
        "{thing} is a packet socket",
        "Packet sockets see the traffic of their own host; stop what uses it, or start it anew.",
    ),
    "socket": Words(
        "{thing} is a socket that cannot move: {what}",
        "Let the program close it first.",
    ),
    "state-unsupported": Words(
        "connection {connection} is in {state} and cannot move yet",
        "Wait until it is established or closed, then check again.",
    ),
    "loopback-peer": Words(
        "connection {connection} leads over loopback to a process that stays on {source}",
        "Move the process that started both, or let the client connect from another host.",
    ),
    "peer-local": Words(
        "the peer of connection {connection} is on {host} itself",
        "Only connections between the service and third hosts can move; close this one.",
    ),
    "bound-address": Words(
        "{thing} is a {protocol} socket bound to {address}, which {destination} does not have yet",
        "Bind it to any address (0.0.0.0 or ::) instead.",
    ),
    # --- addresses
    "address-absent": Words(
        "{address} ({why}) is not an address of any device of {source}",
        "Add it to the device that faces the clients: "
        "`ip address add {address}/PREFIX dev DEVICE` on {source}.",
    ),
    "address-not-movable": Words(
        "{address} ({why}) cannot leave {source}: {reason}",
        "Give the service an address of its own (`ip address add ADDRESS/{prefixlen} dev "
        "{device}`), and let the program and its clients use that one.",
    ),
    "address-shared": Words(
        "{address} ({why}) is also used by {other}, which stays on {source}",
        "Give the service an address of its own, or stop or move the other process first.",
    ),
    "address-taken": Words(
        "{destination} already has {address} ({why})",
        "Remove it there: `ip address del {address}/{prefixlen} dev {device}` on {destination}.",
    ),
    "address-no-device": Words(
        "{destination} has no device in the network of {address}, {network}",
        "Connect both hosts to this network, or give the device of {destination} an address in it.",
    ),
    # --- the destination
    "pid-taken": Words(
        "PID {pid} is taken on {destination} by process {owner} ({comm})",
        "End that process, or start the service with a higher PID (/proc/sys/kernel/ns_last_pid).",
    ),
    "rsync": Words(
        "rsync cannot be used on {host}: {detail}",
        "Install rsync 3.2.4 or newer on {host} (package rsync), or put the files there by hand "
        "and leave --sync and --sync-open out.",
    ),
    "sync-path": Words(
        "{path} cannot be brought along: {detail}",
        "Name another path with --sync, or put the files there by hand.",
    ),
    "file-missing": Words(
        "{path} ({use} of process {pid}) is missing on {destination}",
        "Bring it along: `--sync {path}`, or all such files: `--sync-open`.",
    ),
    "file-different": Words(
        "{path} ({use} of process {pid}) is not the same on {destination}: {detail}",
        "Install the same version on both hosts, or bring the file along: `--sync {path}`.",
    ),
    "port-taken": Words(
        "{protocol} port {endpoint} cannot be bound on {destination}: {detail}{by}",
        "Stop what has the port on {destination}, or let it listen on its own address only.",
    ),
    "unix-name-taken": Words(
        "a socket on {destination} already has the name {name}",
        "Stop what has it on {destination}: a second one would take its place.",
    ),
    "process-capabilities": Words(
        "process {pid} ({comm}) has {names}, which the agent on {destination} cannot give",
        "Log in to {destination} with these capabilities, or start the program without them "
        "(`setpriv --bounding-set`).",
    ),
    "limit-too-low": Words(
        "process {pid} has the limit {limit} at {needed}, {destination} allows {offered}",
        "Raise the hard limit of sessions on {destination} (/etc/security/limits.conf, or the "
        "unit of sshd), or start the program with a lower one.",
    ),
    "option-missing": Words(
        "{destination} cannot give a TCP socket the option {option} that it has: {reason}",
        "Provide it on {destination} (`modprobe` for a congestion control), or go without it: "
        "--without-missing-options.",
    ),
    "descriptor-limit": Words(
        "the agent on {host} needs {needed} descriptors for {sockets} sockets and may have {limit}",
        "Raise the hard limit of open files of sessions on {host} (`ulimit -Hn`).",
    ),
    "memory-short": Words(
        "{host} has {available} MiB of memory left, {needed} MiB are needed to move the process's "
        "{memory} MiB",
        "Free memory on {host}, or name a directory on a disk with --images-dir: what the process "
        "has in memory is then written to it.",
    ),
    "images-on-disk": Words(
        "{path} on {host} is no tmpfs: the process's memory, secrets and all, would go to a disk",
        "Mount a tmpfs there, or name one, or a directory that may have it, with --images-dir.",
    ),
    "images-room": Words(
        "{path} on {host} has {available} MiB of room, {needed} MiB are needed",
        "Free room there, or name another directory for the images.",
    ),
}

_ORDER = {code: place for place, code in enumerate(TABLE)}


def refusal(code: str, **fields: Field) -> Refusal:
    """The refusal in words. Raises `KeyError` for an unknown code or a missing field."""
    words = TABLE[code]
    return Refusal(code, words.message.format(**fields), words.hint.format(**fields))


def arranged(refusals: Iterable[Refusal]) -> list[Refusal]:
    """In the order of importance, each once, and of one code no more than `SHOWN`."""
    groups: dict[str, list[Refusal]] = {}
    for one in dict.fromkeys(refusals):
        groups.setdefault(one.code, []).append(one)
    shown: list[Refusal] = []
    for code in sorted(groups, key=_ORDER.__getitem__):
        group = groups[code]
        shown += group[:SHOWN]
        if len(group) > SHOWN:
            last = shown.pop()
            more = len(group) - SHOWN
            shown.append(Refusal(code, f"{last.message} (and {more} more like this)", last.hint))
    return shown
