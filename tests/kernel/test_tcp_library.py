"""What a program that uses the library alone can rely on."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from agent import tcp
from agent.kernel import uapi
from agent.tcp import Stream, library
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, deaf, echo_works, read_exactly, readable, state

SERVICE = {4: "10.99.0.77", 6: "fd99::77"}


def test_the_names() -> None:
    for name in ("dump", "restore", "release", "abandon", "disconnect", "Stream", "StreamError"):
        assert name in tcp.__all__ and getattr(tcp, name).__doc__
    assert Stream.to_bytes.__doc__ and Stream.from_bytes.__doc__


def test_a_socket_that_is_not_ours(pair: tuple[Host, Host], family: int) -> None:
    with connected(*pair, family) as held:
        for function in (tcp.release, tcp.disconnect):
            with pytest.raises(ValueError, match="not dumped|neither dumped"):
                function(held.server)
        echo_works(held)


def test_no_tcp_at_all() -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError):
        tcp.dump(sock)


@pytest.mark.parametrize("late", [True, False])
def test_the_address_comes_late(
    pair: tuple[Host, Host], family: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that takes a segment of the peer needs the address here, but not at once."""
    server, client = pair
    with connected(server, client, family) as held:
        held.client.shutdown(socket.SHUT_WR)
        wait_until("its end is here", lambda: state(held.server) == uapi.TCP_CLOSE_WAIT)
        stream = tcp.dump(held.server)
        tcp.abandon(held.server)
        address = f"{server.address(family)}/{24 if family == 4 else 64}"
        server.ip("address", "delete", address, "dev", "eth0")
        server.add_address(SERVICE[family])  # so that there is a way to the peer
        held.server = server.run(tcp.restore, stream)
        if not late:
            monkeypatch.setattr(library, "_PATIENCE", 0.05)
            with pytest.raises(OSError, match="not an address of this host") as raised:
                server.run(tcp.release, held.server)
            assert raised.value.errno == errno.EADDRNOTAVAIL
            return
        monkeypatch.setattr(library, "_PATIENCE", 10)
        begin, inject = time.monotonic(), library.Replayer.inject

        def not_yet(replayer: library.Replayer, packets: list[bytes]) -> int:
            return inject(replayer, packets) if time.monotonic() > begin + 0.1 else 0

        monkeypatch.setattr(library.Replayer, "inject", not_yet)
        server.add_address(server.address(family))
        server.run(tcp.release, held.server)
        assert state(held.server) == uapi.TCP_CLOSE_WAIT


def test_without_the_right_to_raw_sockets(
    pair: tuple[Host, Host], family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An established connection moves all the same, without its round-trip time."""

    def denied() -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(library, "Replayer", denied)
    server, client = pair
    data = os.urandom(3000)
    with connected(server, client, family) as held:
        with deaf(server):
            held.server.sendall(data)
            assert read_exactly(held.client, len(data)) == data
            stream = tcp.dump(held.server)
            assert stream.send_queue == data and stream.rtt
            tcp.abandon(held.server)
            held.server = server.run(tcp.restore, stream)
        server.run(tcp.release, held.server)
        wait_until("all is acknowledged", lambda: not tcp_queued(held.server))
        held.server.settimeout(10)
        echo_works(held)


@pytest.mark.parametrize("low_water", [1, 100])
def test_data_that_the_program_is_not_woken_for(
    pair: tuple[Host, Host], family: int, low_water: int
) -> None:
    """Fewer bytes than SO_RCVLOWAT: poll(2) does not tell of them."""
    server, client = pair
    data = os.urandom(99)
    with connected(server, client, family) as held:
        held.server.setsockopt(socket.SOL_SOCKET, uapi.SO_RCVLOWAT, low_water)
        held.client.sendall(data)
        wait_until("they are here", lambda: tcp_waiting(held.server) == len(data))
        assert readable(held.server) == (low_water == 1)
        stream = tcp.dump(held.server)
        assert stream.receive_queue == data
        tcp.abandon(held.server)
        held.server = server.run(tcp.restore, stream)
        server.run(tcp.release, held.server)
        assert tcp_waiting(held.server) == len(data)
        held.server.setblocking(False)
        assert held.server.recv(2 * len(data)) == data


def tcp_waiting(sock: socket.socket) -> int:
    return library.dumping.ioctl_int(sock.fileno(), uapi.SIOCINQ)


def tcp_queued(sock: socket.socket) -> int:
    return library.dumping.ioctl_int(sock.fileno(), uapi.SIOCOUTQ)
