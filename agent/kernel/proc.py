"""Readers of /proc, one per file; each raises `OSError` where the process has gone or is hidden.

Formats: proc(5). Nothing here opens a file that belongs to the process, so reading disturbs it
no more than `ps` would.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

PF_KTHREAD = 0x00200000  # include/linux/sched.h, in the flags of /proc/PID/stat
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
DELETED = " (deleted)"


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that are needed."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgid: int
    sid: int  # 0 when the session's leader is in a PID namespace above
    flags: int


class Mapping(NamedTuple):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str  # "rw-p"; "s" at the end: shared
    device: int
    inode: int
    path: str  # "" for anonymous memory; may end in " (deleted)"


class Holder(NamedTuple):
    """A process that has a descriptor open."""

    pid: int
    fd: int
    comm: str


def read(path: str) -> str:
    """A small file of /proc, whole; bytes that are not UTF-8 survive as surrogates."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        if error.errno == errno.EINVAL:  # mountinfo of a process that is about to end
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path) from error
        raise


def lines(path: str) -> list[str]:
    """The lines of a small file of /proc (a name may hold what `splitlines` takes for an end)."""
    return read(path).split("\n")[:-1]


def printable(text: str) -> str:
    """A name as it can be sent and shown: bytes that are not UTF-8 become escapes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def stat(pid: int) -> Stat:
    text = read(f"/proc/{pid}/stat")
    opening, closing = text.index("("), text.rindex(")")
    fields = text[closing + 2 :].split()
    state, numbers = fields[0], [int(field) for field in fields[1:7]]
    ppid, pgid, sid, _, _, flags = numbers
    name = printable(text[opening + 1 : closing])
    return Stat(int(text[:opening]), name, state, ppid, pgid, sid, flags)


def born(pid: int) -> int:
    """When a process was started, in clock ticks since the boot; 0 when it has gone."""
    with contextlib.suppress(OSError):
        text = read(f"/proc/{pid}/stat")
        return int(text[text.rindex(")") + 2 :].split()[19])
    return 0


def now_in_ticks() -> int:
    """The time that `born` counts."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def boot_id() -> str:
    """Names the time since this host was started: the kernel (random(4)), or a container's init."""
    return f"{read('/proc/sys/kernel/random/boot_id').strip()}/{born(1)}"


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """Name -> value of /proc/PID/status, or of one of its threads."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    parts = (line.partition(":") for line in lines(path))
    return {name: value.strip() for name, _, value in parts}


def kibibytes(text: str) -> int:
    """Bytes of a value such as "1234 kB"."""
    return int(text.split()[0]) << 10


def comm(pid: int) -> str:
    """The name of a process, "" when it has gone."""
    with contextlib.suppress(OSError):
        return printable(read(f"/proc/{pid}/comm").rstrip("\n"))
    return ""


def cmdline(pid: int) -> list[str]:
    return printable(read(f"/proc/{pid}/cmdline")).split("\0")[:-1]


def threads(pid: int) -> list[int]:
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


def ancestors(pid: int) -> list[int]:
    """`pid`, its parent, and so on, as far as can be seen."""
    line = [pid]
    with contextlib.suppress(OSError):
        while (parent := stat(line[-1]).ppid) and parent not in line:
            line.append(parent)
    return line


def namespaces(pid: int) -> dict[str, str]:
    """Kind -> "net:[4026531840]"; kinds the kernel lacks are left out."""
    found = {}
    for kind in NAMESPACES:
        try:
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        except FileNotFoundError:
            if not os.path.exists(f"/proc/{pid}"):
                raise
    return found


def hard_limits(pid: int | str) -> dict[str, int]:
    """Name -> hard limit of /proc/PID/limits, -1 for none."""
    limits = {}
    for line in lines(f"/proc/{pid}/limits")[1:]:
        name, values = line[:26].strip(), line[26:].split()
        limits[name] = -1 if values[1] == "unlimited" else int(values[1])
    return limits


def descriptors(pid: int) -> dict[int, str]:
    """Descriptor -> what its link in /proc/PID/fd says."""
    found = {}
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed since
            found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


def fdinfo(pid: int, fd: int) -> dict[str, str]:
    """Name -> value of /proc/PID/fdinfo/FD; of repeated names the first."""
    values: dict[str, str] = {}
    for line in lines(f"/proc/{pid}/fdinfo/{fd}"):
        name, _, value = line.partition(":")
        values.setdefault(name, value.strip())
    return values


def mount_ids(pid: int) -> set[int]:
    """The mounts of the process's mount namespace."""
    return {int(line.split(" ", 1)[0]) for line in lines(f"/proc/{pid}/mountinfo")}


def filesystem(device: int) -> str:
    """The type of the mounted filesystem that has this st_dev, "" when none has."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        if left.split(" ", 3)[2] == wanted:
            return right.split(" ", 1)[0]
    return ""


def maps(pid: int) -> Iterator[Mapping]:
    for line in lines(f"/proc/{pid}/maps"):
        fields = line.split(None, 5)
        start, _, end = fields[0].partition("-")
        major, _, minor = fields[3].partition(":")
        path = fields[5].replace("\\012", "\n") if len(fields) == 6 else ""
        device = os.makedev(int(major, 16), int(minor, 16))
        yield Mapping(int(start, 16), int(end, 16), fields[1], device, int(fields[4]), path)


def holders(links: Collection[str], outside: Collection[int]) -> dict[str, Holder]:
    """Link -> one process that has it open, other than those of `outside`."""
    found: dict[str, Holder] = {}
    if not links:
        return found
    for pid in pids():
        if pid in outside:
            continue
        with contextlib.suppress(OSError):
            for fd, link in descriptors(pid).items():
                if link in links and link not in found:
                    found[link] = Holder(pid, fd, comm(pid))
    return found


def memory_available() -> int:
    """Bytes a new process may take: MemAvailable, or less where a cgroup has a limit."""
    available = next(
        kibibytes(line.partition(":")[2])
        for line in lines("/proc/meminfo")
        if line.startswith("MemAvailable:")
    )
    for limit, used in _cgroup_limits():
        available = min(available, max(limit - used, 0))
    return available


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) of the memory cgroups this process is in, v1 and v2."""
    for line in lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            top, names = "/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            top, names = "/sys/fs/cgroup", ("memory.max", "memory.current")
        else:
            continue
        while True:
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int(read(f"{top}{path}/{name}")) for name in names)
                yield limit, used - _reclaimable(f"{top}{path}/memory.stat")
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


def _reclaimable(path: str) -> int:
    """Bytes of cached files that the kernel gives up first, from a cgroup's memory.stat."""
    for line in lines(path):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
