"""TIME_WAIT moves: a FIN whose last acknowledgement was lost is acknowledged after the move."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from agent.errors import ProtocolError
from agent.kernel import sockdiag, uapi
from agent.kernel.nflog import PacketLog
from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.netlock.render import Connection
from agent.tcp import time_wait
from agent.tcp.replay import RST, Replayer
from agent.tcp.time_wait import TimeWait
from tests.support.netns import Host, wait_until
from tests.support.tcp import AF, connected, sniffing, state

_ID = "20261123-134501-7f3a9c"


class Side:
    """What an agent has on one host for it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.nftables = host.run(Nftables)
        self.replayer = host.run(Replayer)

    def dump(self, address: str) -> list[TimeWait]:
        found = self.host.run(time_wait.connections, [address])
        with contextlib.closing(self.host.run(PacketLog, time_wait.LOG_GROUP)) as log:
            script = render.time_waits(_ID, found, log_group=time_wait.LOG_GROUP)
            self.nftables.run(script)
            answers = self.host.run(time_wait.ask, found, log, self.replayer.inject)
            self.nftables.run(render.unlock_time_waits(_ID))
        return time_wait.from_rows([list(one) for one in answers])

    def restore(self, found: list[TimeWait]) -> None:
        ends = [Connection(*one[:5]) for one in found]
        self.nftables.run(render.time_waits(_ID, ends))
        for one in found:
            sock = self.host.run(time_wait.prepare, one)
            self.host.run(time_wait.finish, sock, one, self.replayer.inject)
        self.nftables.run(render.unlock_time_waits(_ID))

    def close(self) -> None:
        self.nftables.close()
        self.replayer.close()


@pytest.fixture
def sides(trio: tuple[Host, Host, Host]) -> Iterator[tuple[Side, Side, Host]]:
    source, destination, client = trio
    made = Side(source), Side(destination)
    yield *made, client
    for one in made:
        one.close()


def waiting(host: Host, family: int) -> int:
    return len(host.run(lambda: list(sockdiag.time_waits(AF[family]))))


@pytest.mark.parametrize("timestamps", [1, 0])
def test_a_late_fin(sides: tuple[Side, Side, Host], family: int, timestamps: int) -> None:
    source, destination, client = sides
    client.sysctl("net/ipv4/tcp_timestamps", timestamps)
    service = "10.99.0.77" if family == 4 else "fd99::77"
    source.host.add_address(service)
    with (
        contextlib.ExitStack() as stack,
        source.host.socket(AF[family], socket.SOCK_STREAM) as listener,
        sniffing(client) as sniffer,
    ):
        listener.bind((service, 0))
        listener.listen()
        peer = stack.enter_context(client.socket(AF[family], socket.SOCK_STREAM))
        peer.settimeout(10)
        peer.connect(listener.getsockname()[:2])
        served, _ = listener.accept()
        stack.enter_context(served)
        served.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        # The peer's FIN arrives, the acknowledgement of it does not.
        source.nftables.run(
            "add table inet mute\n"
            "add chain inet mute output { type filter hook output priority 0; }\n"
            "add rule inet mute output meta mark != 0x5f17 meta l4proto tcp drop\n"
        )
        peer.shutdown(socket.SHUT_WR)
        served.close()
        wait_until("TIME_WAIT", lambda: waiting(source.host, family) == 1)
        assert state(peer) == uapi.TCP_LAST_ACK
        found = source.dump(service)
        assert [one.remote_port for one in found] == [peer.getsockname()[1]]
        assert bool(found[0].peer_clock) == bool(timestamps)
        prefix = {4: "/24", 6: "/64"}[family]
        source.host.ip("address", "del", service + prefix, "dev", "eth0")
        destination.host.add_address(service)
        client.ip("neigh", "flush", "dev", "eth0")
        client.ip("neigh", "replace", service, "lladdr", destination.host.mac(), "dev", "eth0")
        sniffer.segments(outgoing=False)
        destination.restore(found)
        assert waiting(destination.host, family) == 1
        assert not sniffer.segments(outgoing=False)
        wait_until("the peer has ended", lambda: state(peer) == uapi.TCP_CLOSE)
        answers = sniffer.segments(outgoing=False)
        assert answers and not [one for one in answers if one.flags & RST]
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_nothing_is_waiting(sides: tuple[Side, Side, Host], family: int) -> None:
    source, _, client = sides
    with connected(source.host, client, family):
        assert source.dump(source.host.address(family)) == []


def test_malformed_rows() -> None:
    good = [4, "10.0.0.1", 80, "10.0.0.2", 4000, 1, 2, 3, 4]
    assert time_wait.from_rows([good]) == [TimeWait(*good)]  # type: ignore[arg-type]
    assert time_wait.from_rows([[6, "fd99::1", *good[2:3], "fd99::2", *good[4:]]])
    for index, value in [
        (0, 5), (1, "fd99::1"), (1, 7), (2, 1 << 16), (2, "80"), (3, ""), (4, -1),
        (5, "1"), (7, 1 << 32), (8, -1),
    ]:  # fmt: skip
        row: list[object] = list(good)
        row[index] = value
        with pytest.raises(ProtocolError):
            time_wait.from_rows([row])
    for rows in (None, {}, [good] * (time_wait.MAX_TIME_WAITS + 1), [good[:-1]], [7]):
        with pytest.raises(ProtocolError):
            time_wait.from_rows(rows)
