"""What the rest of the host has to do with a tree: shared sockets, other ends, its addresses."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import Counter, defaultdict

from agent.kernel import proc, sockdiag, uapi
from agent.probe.descriptors import Descriptors
from agent.probe.facts import OtherSocket
from agent.probe.files import Files
from agent.probe.obstacles import Obstacles
from agent.probe.sockets import Sockets

OTHERS_LIMIT = 3  # sockets named for each address
_TCP_NEW_SYN_RECV = 12  # include/net/tcp_states.h
# Sockets without a process that outlive it, or are not born yet
_FINISHING = {
    uapi.TCP_FIN_WAIT1,
    uapi.TCP_FIN_WAIT2,
    uapi.TCP_CLOSING,
    uapi.TCP_LAST_ACK,
    uapi.TCP_TIME_WAIT,
}


class Neighbours:
    """Built from the tree's sockets and descriptors; finds all in one look at the host."""

    def __init__(
        self,
        pids: list[int],
        sockets: Sockets,
        descriptors: Descriptors,
        files: Files,
        obstacles: Obstacles,
    ) -> None:
        self._pids = frozenset(pids)
        self._sockets = sockets
        self._descriptors = descriptors
        self._files = files
        self._obstacles = obstacles
        self._unix: dict[int, sockdiag.UnixSocket] = {}
        self.closing: Counter[str] = Counter()
        self.others: list[OtherSocket] = []
        self.unix_names: list[str] = []

    def scan(self, pidfds: dict[int, int]) -> None:
        """Fill in what is public, and note the obstacles. Raises `OSError`."""
        others = self._tcp()
        if self._sockets.unix:
            self._unix = sockdiag.unix()
        own = self._descriptors.sockets
        links = {f"socket:[{inode}]" for inode in own}
        links.update(f"socket:[{inode}]" for inode in others)
        links.update(f"socket:[{one.peer}]" for one in self._own_unix().values() if one.peer)
        links.update(self._descriptors.pipes)
        holders = proc.holders(links, self._pids)

        for inode, at in own.items():
            holder = holders.get(f"socket:[{inode}]")
            if holder is not None:
                other = f"process {holder.pid} ({holder.comm})"
                self._obstacles.descriptor("shared-socket", at.pid, at.fd, other=other)
        self._descriptors.check_pipes(holders, pidfds)
        self._check_unix(holders)
        for inode, one in others.items():
            holder = holders.get(f"socket:[{inode}]")
            if holder is not None:
                one["pid"], one["comm"] = holder.pid, holder.comm
            self.others.append(one)

    def _tcp(self) -> dict[int, OtherSocket]:
        """Inode -> sockets of others on addresses of this host; MD5 keys and leftovers noted."""
        own = self._sockets.tcp
        served = {one["port"] for one in self._sockets.listeners}
        ports = set(served)
        ports.update(one.local_port for one in self._sockets.connections)
        found: dict[int, OtherSocket] = {}
        counts: defaultdict[bytes, int] = defaultdict(int)
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in sockdiag.tcp(family):
                if one.inode in own:
                    if one.md5:
                        at = own[one.inode]
                        self._obstacles.descriptor("tcp-md5", at.pid, at.fd, port=one.local_port)
                elif not one.inode:
                    if one.state in _FINISHING and one.local_port in ports:
                        self.closing[uapi.STATE_NAMES[one.state]] += 1
                elif one.local_port in served and one.state != uapi.TCP_LISTEN:
                    continue  # accepted since the tree's descriptors were read, or not yet
                elif one.state not in (uapi.TCP_CLOSE, _TCP_NEW_SYN_RECV):
                    counts[one.local] += 1
                    if counts[one.local] <= OTHERS_LIMIT:
                        address = _public(one.local)
                        if address:
                            found[one.inode] = OtherSocket(
                                address=address,
                                port=one.local_port,
                                state=one.state,
                                pid=0,
                                comm="",
                            )
        return found

    def _own_unix(self) -> dict[int, sockdiag.UnixSocket]:
        return {inode: self._unix[inode] for inode in self._sockets.unix if inode in self._unix}

    def _check_unix(self, holders: dict[str, proc.Holder]) -> None:
        for inode, one in self._own_unix().items():
            at = self._sockets.unix[inode]
            if one.name:
                self._name(one.name, at.pid)
            if one.peer and one.peer not in self._sockets.unix:
                peer = self._unix.get(one.peer)
                holder = holders.get(f"socket:[{one.peer}]")
                other = f"process {holder.pid} ({holder.comm})" if holder else "another process"
                if peer is not None and peer.name:
                    other += f" at {peer.name}"
                self._obstacles.descriptor("unix-outside", at.pid, at.fd, other=other)

    def _name(self, name: str, pid: int) -> None:
        if proc.printable(name) in self.unix_names:
            return
        self.unix_names.append(proc.printable(name))
        if name.startswith("/"):
            self._files.add(os.path.dirname(name), pid, "directory of a unix socket")


def _public(packed: bytes) -> str:
    """The address as text, "" for a wildcard or a loopback address."""
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return "" if address.is_unspecified or address.is_loopback else str(address)
