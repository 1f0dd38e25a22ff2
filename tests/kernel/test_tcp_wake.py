"""Peers wake with the first probe that reaches them; asking again disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agent.kernel import uapi
from agent.tcp import wake as wake_module
from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, probe_again, release, restore
from agent.tcp.wake import NO_ANSWER, Waking, wake
from tests.support.netns import Host, wait_until
from tests.support.tcp import Pair, connect, connected, deaf, echo_works, listen, readable, state

_TCP = socket.IPPROTO_TCP


def begin(host: Host, pair: Pair) -> Waking:
    """The server's end dumped, restored and released; the process's copy is in the pair."""
    stream = dump(pair.server)
    abandon(pair.server)
    ours = host.run(restore, stream)
    pair.server = ours.dup()
    waking = Waking(ours, stream, time.monotonic())
    release(ours, stream)
    waking.begin()
    return waking


@contextlib.contextmanager
def losing(host: Host, family: int, packets: int) -> Iterator[None]:
    """The first few segments do not reach the host."""
    rule = f"meta l4proto tcp numgen inc mod 1000000 < {packets} drop"
    table = f"{'ip' if family == 4 else 'ip6'} lossy"
    hook = "{ type filter hook prerouting priority -300; }"
    host.command("nft", f"add table {table}; add chain {table} c {hook}; add rule {table} c {rule}")
    try:
        yield
    finally:
        host.command("nft", f"delete table {table}")


def test_many_peers_that_answer(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with contextlib.ExitStack() as held:
        with listen(server, server.address(family)) as listener:
            pairs = [connect(client, listener) for _ in range(50)]
        for one in pairs:
            held.callback(one.close)
        waking = [begin(server, one) for one in pairs]
        asyncio.run(wake(waking))
        assert all(one.awake and one.sock.fileno() == -1 for one in waking)
        for report in (one.report() for one in waking):
            assert report["probes"] >= 1 and 0 < report["wake_ms"] < wake_module.GIVE_UP * 1000
            assert client.address(family) in report["remote"]
        assert min(one.probes for one in waking) == 1
        for one in pairs:
            one.server.settimeout(10)
            echo_works(one)


@pytest.mark.parametrize("lost", [1, 2])
def test_lost_probes_are_sent_again(pair: tuple[Host, Host], family: int, lost: int) -> None:
    server, client = pair
    with connected(server, client, family) as held:
        with losing(client, family, lost):
            waking = begin(server, held)
            asyncio.run(wake([waking]))
        assert waking.probes == 1 + lost
        assert waking.wake_ms > wake_module._PROBES_AT[lost - 1] * 1000
        held.server.settimeout(10)
        echo_works(held)


def test_a_peer_that_is_gone(
    pair: tuple[Host, Host], family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays without an answer, within the bound; the others are not kept waiting."""
    monkeypatch.setattr(wake_module, "_PROBES_AT", (0.01, 0.05, 0.1))
    monkeypatch.setattr(wake_module, "GIVE_UP", 0.3)
    server, client = pair
    with connected(server, client, family) as held, connected(server, client, family) as well:
        answered = begin(server, well)
        wait_until("the answer", functools.partial(_looked, answered))
        with deaf(client):
            gone = begin(server, held)
            start = time.monotonic()
            asyncio.run(wake([gone, answered]))
            assert 0.3 <= time.monotonic() - start < 3
        assert (gone.wake_ms, gone.probes) == (NO_ANSWER, 4)
        assert answered.awake and answered.probes == 1
        gone.sock.close()
        held.server.settimeout(10)
        echo_works(held)  # it was only far away


def _looked(waking: Waking) -> bool:
    waking.look()
    return waking.awake


def test_the_bound_is_below_two_seconds() -> None:
    assert max(wake_module._PROBES_AT) < wake_module.GIVE_UP < 2


def test_a_peer_that_has_forgotten(pair: tuple[Host, Host], family: int) -> None:
    """It answers with a reset: that ends the connection, and nothing here."""
    server, client = pair
    with connected(server, client, family) as held:
        stream = dump(held.server)
        abandon(held.server)
        with deaf(server):  # neither its reset nor its retransmissions arrive
            linger = b"\1\0\0\0\0\0\0\0"
            held.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            held.client.close()
        held.server = server.run(restore, stream)
        waking = Waking(held.server.dup(), stream, time.monotonic())
        release(held.server, stream)
        waking.begin()
        asyncio.run(wake([waking]))
        assert waking.awake
        held.server.settimeout(10)
        with pytest.raises(ConnectionResetError):
            held.server.recv(1)


def test_a_release_in_silence(pair: tuple[Host, Host], family: int) -> None:
    """Nothing is sent until it is probed; then, or with what the process sends, all goes on."""
    server, client = pair
    with connected(server, client, family) as held:
        stream = dump(held.server)
        abandon(held.server)
        held.server = server.run(restore, stream)
        before = _segments(held.client)
        waking = Waking(held.server.dup(), stream, time.monotonic(), probes=0)
        release(held.server, stream, quiet=True)
        waking.begin()
        assert not _looked(waking) and _segments(held.client) == before
        asyncio.run(wake([waking]))
        assert waking.awake and waking.probes == 1
        assert _segments(held.client) == before + 1
        held.server.settimeout(10)
        echo_works(held)


def _segments(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, uapi.TCP_INFO, uapi.TCP_INFO_SIZE)
    return int.from_bytes(info[uapi.TCP_INFO_SEGS_IN_OFFSET :][:4], sys.byteorder)


def test_nothing_to_wake() -> None:
    start = time.monotonic()
    asyncio.run(wake([]))
    assert time.monotonic() - start < 1


def test_a_close_by_the_process_reaches_the_peer(pair: tuple[Host, Host], family: int) -> None:
    """Once awake our copy is closed, while the others are still waited for."""
    server, client = pair
    with connected(server, client, family) as held:
        waking = begin(server, held)
        held.server.close()
        assert not readable(held.client)
        asyncio.run(wake([waking]))
        wait_until("the end is here", functools.partial(readable, held.client))
        assert held.client.recv(1) == b""
        assert state(held.client) == uapi.TCP_CLOSE_WAIT


def test_probing_in_another_state_than_established(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    with connected(server, client, family) as held:
        stream = dump(held.server)
        release(held.server, stream)
        waking = Waking(held.server.dup(), stream)
        held.client.close()
        wait_until("its end is here", lambda: state(held.server) == uapi.TCP_CLOSE_WAIT)
        waking.probe()
        assert waking.probes == 1
        waking.sock.close()


_TALKER = """
import socket, sys
server, client = (socket.socket(fileno=int(one)) for one in sys.argv[1:])
for sock in (server, client):
    sock.settimeout(30)
sys.stdout.write("ready"); sys.stdout.flush()
client.sendall(b"x")
while True:
    for sock in (server, client):
        data = sock.recv(4096)
        if not data:
            raise SystemExit
        sock.sendall(data)
"""


def test_asking_again_does_not_disturb_the_process(pair: tuple[Host, Host], family: int) -> None:
    """The process has been resumed: none of its calls may fail while its socket is probed."""
    server, client = pair
    with connected(server, client, family) as held:
        stream = dump(held.server)
        release(held.server, stream)
        ends = held.server.fileno(), held.client.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", _TALKER, *map(str, ends)],
            pass_fds=ends,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as talker:
            assert talker.stdout is not None and talker.stdout.read(5) == b"ready"
            for _ in range(30_000):
                probe_again(held.server, stream)
            alive = talker.poll() is None
            held.client.shutdown(socket.SHUT_RDWR)
            _, errors = talker.communicate(timeout=10)
        assert alive, errors.decode()
