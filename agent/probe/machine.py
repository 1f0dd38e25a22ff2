"""What a host is and what it lets the agent do; whatever can be tried is tried, not guessed."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import platform
import resource
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

from agent import cordon, private
from agent.kernel import proc, sockdiag, uapi, userfault
from agent.probe import criu
from agent.probe.capabilities import has, missing
from agent.probe.facts import AddressFacts, HostFacts, ImagesFacts

_NR_CLONE3 = 435  # include/uapi/asm-generic/unistd.h
_ETH_P_IP = 0x0800
# Instruction sets in /proc/cpuinfo that a program looks for once and then relies on
_INSTRUCTIONS = (
    "3dnow adx aes amx avx bmi clflush clmul clwb clzero cmpxchg cx16 cx8 erms f16c fma fsgsbase "
    "fsrm fxsr gfni invpcid lahf lzcnt mmx monitor movbe movdir mpx pclmul pku popcnt pni prefetch "
    "ptwrite rdpid rdrand rdseed rdtscp serialize sha sse ssse syscall vaes vpclmul waitpkg xsave "
    "xop fma4 tbm abm "
    "fp asimd crc32 atomics fphp dcpop sve sm3 sm4 jscvt lrcpc ilrcpc dotprod bti paca pacg mte "
    "rng i8mm bf16 sb ssbs flag frint"
).split()


def look(images_dir: str) -> HostFacts:
    """The facts of this host."""
    capabilities = int(proc.status(os.getpid())["CapEff"], 16)
    criu_path = shutil.which("criu", path=criu.SEARCH_PATH)
    return HostFacts(
        identity=_identity(),
        hostname=socket.gethostname(),
        kernel=platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        uid=os.geteuid(),
        capabilities=capabilities,
        missing_capabilities=missing(capabilities),
        cpu_flags=_cpu_flags(),
        criu=criu.look(criu_path),
        nftables=_tried(_try_nftables),
        sock_diag=_tried(_try_sock_diag),
        tcp_repair=_tried(_try_repair),
        raw_socket=_tried(_try_raw),
        packet_socket=_tried(_try_packet),
        choose_pid=_tried(_try_choose_pid),
        userfault=_tried(userfault.attempt),
        tables=_tables(),
        memory_available=proc.memory_available(),
        images=_images(images_dir),
        addresses=_addresses(),
        reached=_reached(),
        named=_named(),
        gateways=_gateways(),
        descriptors=_descriptors(has(capabilities, "CAP_SYS_RESOURCE")),
        processes=len(proc.pids()),
        cordon=cordon.look(),
    )


def _identity() -> str:
    """Two containers of one machine share the boot id, two machines may share a machine id."""
    boot = proc.read("/proc/sys/kernel/random/boot_id").strip()
    return f"{boot} {os.readlink('/proc/self/ns/net')} {os.readlink('/proc/self/ns/pid')}"


def _cpu_flags() -> list[str]:
    for line in proc.lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return sorted(one for one in set(value.split()) if one.startswith(tuple(_INSTRUCTIONS)))
    return []


def _tried(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _try_nftables() -> None:
    from agent.netlock import apply

    problem = apply.available()
    if problem is not None:
        raise OSError(errno.EOPNOTSUPP, problem)


def _tables() -> list[str]:
    from agent.errors import AgentError
    from agent.netlock import apply

    try:
        return apply.tables()
    except AgentError:
        return []  # already told by `nftables`


def _try_sock_diag() -> None:
    for _ in sockdiag.tcp(socket.AF_INET):
        break
    sockdiag.unix()


def _try_repair() -> None:
    """A connection made in repair mode to nobody, taken apart, and closed without a packet."""
    tcp = socket.IPPROTO_TCP
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(tcp, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
        for queue in (uapi.TCP_SEND_QUEUE, uapi.TCP_RECV_QUEUE):
            sock.setsockopt(tcp, uapi.TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(tcp, uapi.TCP_QUEUE_SEQ, 1)
        sock.setsockopt(tcp, uapi.TCP_REPAIR_QUEUE, uapi.TCP_NO_QUEUE)
        sock.connect(("127.0.0.1", 9))
        options = uapi.REPAIR_OPT.pack(uapi.TCPOPT_MSS, 1000)
        sock.setsockopt(tcp, uapi.TCP_REPAIR_OPTIONS, options)
        window = sock.getsockopt(tcp, uapi.TCP_REPAIR_WINDOW, uapi.REPAIR_WINDOW.size)
        sock.setsockopt(tcp, uapi.TCP_REPAIR_WINDOW, window)


def _try_raw() -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6 has nothing to replay
                raise


def _try_packet() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)).close()


def _try_choose_pid() -> None:
    """clone3(2) with `set_tid`, as CRIU restores a PID: asked for PID 1, which is always taken.

    The permission is checked first (kernel/pid.c), so EEXIST means it would be granted.
    """
    wanted = (ctypes.c_int * 1)(1)
    # struct clone_args: 11 fields of 8 bytes, linux/sched.h; set_tid since 5.5
    arguments = struct.pack(
        "=11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0
    )
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(_NR_CLONE3), buffer, ctypes.c_size_t(len(arguments)))
    if result == 0:
        os._exit(0)  # pragma: no cover - PID 1 was free after all: this is the child
    code = ctypes.get_errno()
    if result > 0 or code == errno.EEXIST:
        return
    if code != errno.ENOSYS:
        raise OSError(code, os.strerror(code))
    # An old kernel, or a seccomp filter that hides clone3: CRIU writes to this file instead
    os.close(os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC))


def _images(images_dir: str) -> ImagesFacts:
    path = os.path.normpath(images_dir)
    problem = None
    try:
        private.check(Path(path), hidden=False)
    except FileNotFoundError:
        pass  # it will be made
    except OSError as error:
        problem = error.strerror
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    if problem is None:
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".streamferry-", dir=path))
        except OSError as error:
            problem = f"{error.strerror}: {path}"
    room = os.statvfs(path)
    return ImagesFacts(
        path=path,
        tmpfs=proc.filesystem(os.stat(path).st_dev) in ("tmpfs", "ramfs"),
        free=room.f_bavail * room.f_frsize,
        problem=problem,
    )


def _addresses() -> list[AddressFacts]:
    from agent import address

    names = AddressFacts.__annotations__
    found: list[dict[str, object]] = [dict(one) for one in address.inventory()]
    return [cast(AddressFacts, {name: one[name] for name in names}) for one in found]


def _reached() -> str | None:
    from agent.link import reached_address

    return reached_address()


def _named() -> list[str]:
    """The addresses of this host's own name, as far as /etc/hosts knows it (hosts(5))."""
    name = socket.gethostname()
    found = []
    try:
        lines = proc.lines("/etc/hosts")
    except OSError:
        return []
    for line in lines:
        words = line.partition("#")[0].split()
        if name in words[1:] or name in (word.partition(".")[0] for word in words[1:]):
            try:
                found.append(str(ipaddress.ip_address(words[0])))
            except ValueError:
                continue
    return found


def _gateways() -> list[list[str]]:
    """[gateway, device] of the routes in /proc/net/route: hex words in the machine's order."""
    found = []
    for line in proc.lines("/proc/net/route")[1:]:
        words = line.split()
        gateway = int(words[2], 16)
        if gateway:
            found.append([socket.inet_ntoa(struct.pack("=I", gateway)), words[0]])
    return found


def _descriptors(may_raise: bool) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if may_raise or hard == resource.RLIM_INFINITY:
        return int(proc.read("/proc/sys/fs/nr_open"))
    return hard
