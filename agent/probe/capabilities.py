"""Capabilities by name (capabilities(7), include/uapi/linux/capability.h)."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
        "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
        "CHECKPOINT_RESTORE"
    ).split()
)

# What the agent and the CRIU under it cannot do without
NEEDED = (
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
)


def has(mask: int, name: str) -> bool:
    return bool(mask >> NAMES.index(name) & 1)


def missing(mask: int, names: Iterable[str] = NEEDED) -> list[str]:
    """Those of `names` that are not in the mask."""
    return [name for name in names if not has(mask, name)]


def names(mask: int) -> list[str]:
    """The names of a mask's bits; bits this list does not know yet as numbers."""
    return [
        NAMES[bit] if bit < len(NAMES) else f"capability {bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    ]
