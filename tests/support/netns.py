"""Throw-away network namespaces: hosts on one link, for tests that need a real kernel.

A namespace belongs to a thread of this process that has left the others' one (unshare(2)). It has
no name and no mount, so it is gone with its thread, and nothing can be left behind.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

_RTF_LOCAL = 0x80000000  # include/uapi/linux/ipv6_route.h
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)

DEADLINE = 10.0  # seconds
_POLL = 0.002


class Namespace:
    """A network namespace, and the thread in it that does what `run` is given."""

    open: ClassVar[set[Namespace]] = set()

    def __init__(self, name: str) -> None:
        self.name = name
        Namespace.open.add(self)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{name}")
        try:
            self.thread_id = self.run(_leave)
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function inside; sockets it makes stay inside wherever they are used later."""
        return self._thread.submit(function, *args, **kwargs).result(60)

    def socket(self, *args: Any, **kwargs: Any) -> socket.socket:
        return self.run(socket.socket, *args, **kwargs)

    def ip(self, *args: str) -> str:
        """Run ip(8) inside; returns what it printed."""
        return self.command("ip", *args)

    def command(self, *args: str) -> str:
        done = self.run(
            subprocess.run, args, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def sysctl(self, name: str, value: int) -> None:
        """Set "net/..." inside (/proc/sys/net is that of the thread which opens it)."""
        self.run(Path("/proc/sys", name).write_text, str(value))

    def close(self) -> None:
        """End the thread; the namespace goes when its last socket is closed. Idempotent."""
        self._thread.shutdown()
        Namespace.open.discard(self)


class Host(Namespace):
    """A namespace with the device `eth0` on the network that it was made for."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self.address4 = f"10.99.0.{number}"
        self.address6 = f"fd99::{number:x}"

    def address(self, family: int) -> str:
        return self.address4 if family == 4 else self.address6

    def add_address(self, address: str) -> None:
        """An address of the network at eth0, ready to use at once."""
        if ":" in address:
            self.ip("address", "add", f"{address}/64", "dev", "eth0", "nodad")
            # The kernel adds its local route in a work item, up to half a second later on a busy
            # machine. What comes before is lost, and a handshake that took a second makes for a
            # retransmission timer of three.
            wait_until(f"{address} is local", lambda: self.run(_is_local, address))
        else:
            self.ip("address", "add", f"{address}/24", "dev", "eth0")

    def link_local(self) -> str:
        """Its address on the link alone, which it gets with the first call."""
        address = self.address6.replace("fd99", "fe80")
        if address not in self.ip("-6", "address", "show", "dev", "eth0"):
            self.add_address(address)
        return address

    def mac(self) -> str:
        return self.ip("-brief", "link", "show", "eth0").split()[2]


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Hosts joined by a bridge, with 10.99.0.N/24 and fd99::N/64 at eth0 (1500 bytes MTU)."""
    with ExitStack() as undo:
        switch = Namespace("switch")
        undo.callback(switch.close)
        switch.ip("link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        switch.ip("link", "set", "bridge", "up")
        hosts = []
        for number, name in enumerate(names, 1):
            host = Host(name, number)
            undo.callback(host.close)
            port = f"port{number}"
            peer = ("peer", "name", "eth0", "netns", str(host.thread_id))
            switch.ip("link", "add", port, "type", "veth", *peer)
            switch.ip("link", "set", port, "master", "bridge", "up")
            # Without link-local addresses there is no search for duplicates to wait for.
            host.ip("link", "set", "eth0", "addrgenmode", "none", "up")
            host.add_address(host.address4)
            host.add_address(host.address6)
            hosts.append(host)
        yield hosts


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        Namespace("trial").close()
    except (OSError, RuntimeError) as error:
        return f"no network namespaces here: {error}"
    return None


def wait_until(what: str, condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Poll until a condition holds. Raises `AssertionError` at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(_POLL)


def _is_local(address: str) -> bool:
    """Whether an IPv6 address has its local route: address, ..., flags, device in ipv6_route."""
    wanted = socket.inet_pton(socket.AF_INET6, address).hex()
    rows = map(str.split, Path("/proc/thread-self/net/ipv6_route").read_text().splitlines())
    return any(row[0] == wanted and int(row[8], 16) & _RTF_LOCAL for row in rows)


def _leave() -> int:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    return int(_libc.gettid())
