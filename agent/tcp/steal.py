"""Find a tree's TCP sockets and take copies of their descriptors (pidfd_getfd(2))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.kernel import epoll, uapi
from agent.kernel.syscalls import pidfd_getfd
from agent.tcp.dumping import was_connected

_PREFIX = "socket:["
# The numbers: `socket.socket` makes members of enums of them, half a microsecond each
_family, _type = socket.SocketType.family.__get__, socket.SocketType.type.__get__


@dataclass(slots=True)
class Descriptors:
    """What of the processes' descriptors is sockets, or watches them."""

    sockets: dict[int, tuple[int, int]] = field(default_factory=dict)  # inode -> a pid, its fd
    inodes: dict[int, dict[int, int]] = field(default_factory=dict)  # pid -> fd -> inode
    epolls: list[tuple[int, int]] = field(default_factory=list)  # pid, fd


def list_descriptors(pids: Iterable[int]) -> Descriptors:
    """The sockets and epoll sets that the processes have open."""
    found = Descriptors()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
            try:
                found.inodes[pid] = _list(directory, pid, found)
            finally:
                os.close(directory)
    return found


def _list(directory: int, pid: int, found: Descriptors) -> dict[int, int]:
    inodes = {}
    for name in os.listdir(directory):
        try:
            target = os.readlink(name, dir_fd=directory)
        except OSError:
            continue  # closed since
        if target.startswith(_PREFIX):
            inode = inodes[int(name)] = int(target[len(_PREFIX) : -1])
            found.sockets.setdefault(inode, (pid, int(name)))
        elif target == epoll.LINK:
            found.epolls.append((pid, int(name)))
    return inodes


def socket_descriptors(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """inode -> (pid, descriptor) of one descriptor for each socket the processes have open."""
    return list_descriptors(pids).sockets


def steal(
    pidfds: Mapping[int, int], descriptors: Mapping[int, tuple[int, int]]
) -> dict[int, socket.socket]:
    """inode -> our copy of each TCP socket that is connected, listening, or was connected.

    The open file description is shared with the process: what is set here is set there, too.
    Those that never were connected CRIU restores by itself.
    """
    stolen: dict[int, socket.socket] = {}
    try:
        for inode, (pid, fd) in descriptors.items():
            sock = _copy(pidfds[pid], fd, inode)
            if sock is None:
                continue
            if is_tcp(sock) and (state_of(sock) != uapi.TCP_CLOSE or was_connected(sock)):
                stolen[inode] = sock
            else:
                sock.close()
    except BaseException:
        for sock in stolen.values():
            sock.close()
        raise
    return stolen


def _copy(pidfd: int, fd: int, inode: int) -> socket.socket | None:
    """Our copy of a descriptor, or None where it is not that socket any more."""
    try:
        copy = pidfd_getfd(pidfd, fd)
    except OSError:
        return None  # closed since the descriptors were listed
    if os.fstat(copy).st_ino != inode:  # and its number is used again
        os.close(copy)
        return None
    return socket.socket(fileno=copy)


def is_tcp(sock: socket.socket) -> bool:
    return (
        sock.proto == socket.IPPROTO_TCP
        and _type(sock) == socket.SOCK_STREAM
        and _family(sock) in (socket.AF_INET, socket.AF_INET6)
    )


def state_of(sock: socket.socket) -> int:
    """TCP_ESTABLISHED, TCP_LISTEN ..."""
    return sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 1)[0]


def accept_queue(listener: socket.socket) -> int:
    """How many connections wait to be accepted (tcpi_unacked of a listening socket)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, 28)
    return int.from_bytes(info[24:28], "little")
