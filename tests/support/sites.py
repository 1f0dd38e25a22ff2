"""Hosts between which a service can move, on a wire in the hands of the test, with what an agent
has there: lock, capture, replay and address."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

from agent.address import AddressMover
from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.netlock.render import Connection
from agent.tcp.capture import Capture
from agent.tcp.replay import Replayer
from tests.support.tun import TunHost

SERVICE = {4: "10.99.0.100", 6: "fd99::100"}

_ID = "20261123-134501-7f3a9c"
_LENGTH = {4: 24, 6: 64}


class Site:
    """A host that the service can be on."""

    def __init__(self, host: TunHost, undo: ExitStack) -> None:
        self.host = host
        self._nftables = host.run(Nftables)
        undo.callback(self._nftables.close)
        self._capture = host.run(Capture, list(SERVICE.values()))
        undo.callback(self._capture.close)
        self.replayer = host.run(Replayer)
        undo.callback(self.replayer.close)
        self._movers: dict[int, AddressMover] = {}
        for family, address in SERVICE.items():
            self._movers[family] = host.run(AddressMover, address, _LENGTH[family], "eth0")
            undo.callback(self._movers[family].close)

    def lock(self, connection: Connection) -> None:
        """From here on, the peer's packets of the connection are captured."""
        self._run(render.lock(_ID, [connection], [], stage="full"))
        self._capture.drain(set(), ())

    def unlock(self) -> None:
        self._run(render.unlock(_ID))

    def captured(self, connection: Connection) -> list[bytes]:
        return self._capture.drain({connection}, ())

    def take_address(self, family: int) -> None:
        self._movers[family].add()

    def drop_address(self, family: int) -> None:
        self._movers[family].remove()

    def _run(self, script: str) -> None:
        self.host.run(self._nftables.run, script)


class Lab:
    """Two sites and the client's host. If `quick`, retransmission timers start at 5 ms."""

    SYSCTLS = ("tcp_timestamps", "tcp_sack", "tcp_window_scaling")

    def __init__(self, hosts: list[TunHost], undo: ExitStack, *, quick: bool = True) -> None:
        self.hosts = hosts
        *sources, self.client = hosts
        for host in hosts if quick else ():
            host.sysctl("net/ipv4/tcp_rto_min_us", 5000)
            host.sysctl("net/ipv4/tcp_invalid_ratelimit", 0)
            # A connection without a measured RTT, as each after its restore, waits 3 s for its
            # retransmission timer (tcp_init_metrics()); not where the route knows the RTT.
            rtt = ("dev", "eth0", "rtt", "lock", "1ms")
            host.ip("route", "change", "10.99.0.0/24", *rtt)
            host.ip("-6", "route", "add", "fd99::/64", "metric", "100", *rtt)
        self.sites = [Site(host, undo) for host in sources]
        self.moved: Counter[str] = Counter()  # (how, in which shape)
        self._off: dict[TunHost, tuple[str, ...]] = dict.fromkeys(hosts, ())

    def switch_off(self, host: TunHost, names: tuple[str, ...]) -> None:
        """Of `SYSCTLS`, those and no others."""
        for name in {*names} ^ {*self._off[host]}:
            host.sysctl(f"net/ipv4/{name}", int(name not in names))
        self._off[host] = names

    def other(self, site: Site) -> Site:
        return self.sites[1 - self.sites.index(site)]
