"""The lock against real connections: what it stops, and what it must not touch."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from agent.kernel import uapi
from agent.netlock import apply, render
from agent.netlock.apply import LockError, Nftables, NftablesMissing
from agent.netlock.render import Connection, Listener
from agent.tcp.replay import RST
from tests.support.netns import Host, wait_until
from tests.support.tcp import (
    await_established,
    begin_connect,
    connect,
    connected,
    echo_works,
    listen,
    ports,
    read_exactly,
    readable,
    retransmits,
    sniffing,
    state,
)

ID = "20261123-134501-7f3a9c"
OTHER = "20261123-134502-000000"
PORT = 6379


class Lock:
    """nftables of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._nftables = host.run(Nftables)

    def run(self, script: str) -> str:
        return self._host.run(self._nftables.run, script)

    def tables(self) -> list[str]:
        return self._host.run(self._nftables.tables)

    def available(self) -> str | None:
        return self._host.run(self._nftables.available)

    def close(self) -> None:
        self._host.run(self._nftables.close)


@pytest.fixture
def locks() -> Iterator[Callable[[Host], Lock]]:
    made: list[Lock] = []

    def make(host: Host) -> Lock:
        made.append(Lock(host))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(RuntimeError):  # the host is gone already
            one.close()


def test_full_stops_both_directions_without_a_word(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    lock = locks(server)
    with connected(server, client, family) as held, connected(server, client, family) as free:
        echo_works(held)
        lock.run(render.lock(ID, [held.connection()], [], stage="full"))
        with sniffing(client) as wire:
            held.client.sendall(b"to the server")
            held.server.sendall(b"to the client")
            wait_until("the client's timer ran out twice", lambda: retransmits(held.client) >= 2)
            assert not readable(held.server) and not readable(held.client)
            assert state(held.client) == state(held.server) == uapi.TCP_ESTABLISHED
            from_server = [one for one in wire.segments(outgoing=False)]
            assert [
                one for one in from_server if ports(one)[1] == held.client.getsockname()[1]
            ] == []
            echo_works(free)

            lock.run(render.unlock(ID))
            assert read_exactly(held.server, 13) == b"to the server"
            assert read_exactly(held.client, 13) == b"to the client"
            assert not [one for one in wire.segments(outgoing=False) if one.flags & RST]
        echo_works(held)


def test_full_keeps_a_closed_socket_silent(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    """The process ends while its peer sends: no FIN, no RST, nothing for a SYN either."""
    server, client = pair
    lock = locks(server)
    address = server.address(family)
    with listen(server, address, PORT) as listener:
        held = connect(client, listener)
        service = [Listener(family, address, PORT)]
        lock.run(render.lock(ID, [held.connection()], service, stage="full"))
        with sniffing(client) as wire:
            held.client.sendall(b"never read")
            held.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            held.server.close()
            listener.close()
            with begin_connect(client, address, PORT) as late:
                wait_until("the SYN was repeated", lambda: retransmits(late) >= 1)
                assert state(late) == uapi.TCP_SYN_SENT
            assert wire.segments(outgoing=False) == []
        assert state(held.client) == uapi.TCP_ESTABLISHED
        held.close()


def test_hold_syn_stops_new_connections_only(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    lock = locks(server)
    address = server.address(family)
    with listen(server, address, PORT) as listener, listen(server, address) as other:
        held = connect(client, listener)
        service = [Listener(family, address, PORT)]
        lock.run(render.lock(ID, [held.connection()], service, stage="hold_syn"))
        with begin_connect(client, address, PORT) as late:
            echo_works(held)
            connect(client, other).close()
            wait_until("the SYN was repeated", lambda: retransmits(late) >= 1)
            assert state(late) == uapi.TCP_SYN_SENT and not readable(listener)
            lock.run(render.unlock(ID))
            await_established(late)
            listener.accept()[0].close()
        held.close()


def test_hold_syn_lets_a_handshake_end(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    at_server, at_client = locks(server), locks(client)
    address = server.address(family)
    with listen(server, address, PORT) as listener:
        at_client.run(
            "table inet silent { chain output { type filter hook output priority 0;\n"
            f"tcp dport {PORT} tcp flags & (syn | ack) == ack drop\n}}\n}}\n"
        )
        with begin_connect(client, address, PORT) as half_open:
            await_established(half_open)  # as far as the client can tell
            assert not readable(listener)
            service = [Listener(family, address, PORT)]
            at_server.run(render.lock(ID, [], service, stage="hold_syn"))
            at_client.run("delete table inet silent\n")
            half_open.send(b"hello")
            served, _ = listener.accept()
            assert read_exactly(served, 5) == b"hello"
            served.close()


def test_only_the_local_port_counts(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    """A connection out to the same port number elsewhere goes on."""
    server, client = pair
    lock = locks(server)
    with listen(client, client.address(family), PORT) as elsewhere:
        outward = connect(server, elsewhere)
        service = [Listener(family, server.address(family), PORT), Listener(family, None, PORT)]
        for stage in ("hold_syn", "full"):
            lock.run(render.lock(ID, [], service, stage=stage))
            echo_works(outward)
            connect(server, elsewhere).close()
        outward.close()


def test_the_same_port_at_another_address_is_free(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    lock = locks(server)
    ours, theirs = server.address(family), {4: "10.99.0.77", 6: "fd99::77"}[family]
    server.add_address(theirs)
    with listen(server, ours, PORT) as locked, listen(server, theirs, PORT) as free:
        before = connect(client, free)
        lock.run(render.lock(ID, [], [Listener(family, ours, PORT)], stage="full"))
        echo_works(before)
        before.close()
        connect(client, free).close()
        with begin_connect(client, ours, PORT) as late:
            wait_until("the SYN was repeated", lambda: retransmits(late) >= 1)
            assert not readable(locked)


def test_any_address_is_each_of_this_host(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock]
) -> None:
    """A listener on any address; its connections are not listed and stop all the same."""
    server, client = pair
    lock = locks(server)
    with listen(server, "0.0.0.0", PORT) as four, listen(server, server.address6, PORT) as six:
        sock = client.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect((server.address4, PORT))
        served, _ = four.accept()
        lock.run(render.lock(ID, [], [Listener(4, None, PORT)], stage="full"))
        sock.sendall(b"x")
        served.sendall(b"y")
        wait_until("the client's timer ran out", lambda: retransmits(sock) >= 1)
        assert not readable(served) and not readable(sock)
        connect(client, six).close()  # the other family is not ours
        lock.run(render.unlock(ID))
        assert read_exactly(served, 1) + read_exactly(sock, 1) == b"xy"
        served.close()
        sock.close()


def test_what_is_forwarded_passes(
    trio: tuple[Host, Host, Host], locks: Callable[[Host], Lock]
) -> None:
    """A router with a listener on any address locks its own port, not that of others."""
    inside, router, client = trio
    router.sysctl("net/ipv4/ip_forward", 1)
    router.sysctl("net/ipv4/conf/all/send_redirects", 0)
    router.sysctl("net/ipv4/conf/eth0/send_redirects", 0)
    client.ip("route", "add", f"{inside.address4}/32", "via", router.address4)
    lock = locks(router)
    lock.run(render.lock(ID, [], [Listener(4, None, PORT)], stage="full"))
    with listen(inside, inside.address4, PORT) as listener, sniffing(router) as wire:
        through = connect(client, listener)
        echo_works(through)
        assert wire.segments(outgoing=True), "the client did not take the way through the router"
        through.close()


def test_ten_thousand_connections(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    lock = locks(server)
    remote = {4: "10.98.{}.{}", 6: "fd98::{:x}:{:x}"}[family]
    many = [
        Connection(family, server.address(family), PORT, remote.format(i >> 8, i & 255), 1024 + i)
        for i in range(10_000)
    ]
    with connected(server, client, family) as held, connected(server, client, family) as free:
        script = render.lock(ID, [*many, held.connection()], [], stage="full")
        start = time.perf_counter()
        lock.run(script)
        took = time.perf_counter() - start
        held.client.sendall(b"x")
        wait_until("the client's timer ran out", lambda: retransmits(held.client) >= 1)
        assert not readable(held.server)
        echo_works(free)
        lock.run(render.unlock(ID))
        assert read_exactly(held.server, 1) == b"x"
    assert took < 0.2, f"{took * 1000:.0f} ms"  # 50 ms on an idle machine


def test_a_tightened_lock_is_a_full_one(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    """Rule by rule, whichever of the connections were in its sets before."""
    server, client = pair
    lock = locks(server)
    service = [Listener(family, server.address(family), PORT), Listener(family, None, PORT + 1)]
    listing = f"list table inet {render.table_name(ID)}"
    with connected(server, client, family) as held, connected(server, client, family) as later:
        both = [held.connection(), later.connection()]
        lock.run(render.lock(ID, both, service, stage="full"))
        full = lock.run(listing)
        lock.run(render.lock(ID, both[:1], service, stage="hold_syn"))
        echo_works(held)
        echo_works(later)
        lock.run(render.tighten(ID, both[1:]))
        lines = lock.run(listing).splitlines()
        assert sorted(map(str.strip, lines)) == sorted(map(str.strip, full.splitlines()))
        for one in (held, later):
            one.client.sendall(b"x")
            wait_until("the client's timer ran out", lambda c=one.client: retransmits(c) >= 1)
            assert not readable(one.server)


def test_connections_are_added(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock], family: int
) -> None:
    server, client = pair
    lock = locks(server)
    with connected(server, client, family) as held:
        lock.run(render.lock(ID, [], [], stage="full"))
        echo_works(held)
        for _ in range(2):  # again is no error
            lock.run(render.add_connections(ID, [held.connection()]))
        held.client.sendall(b"x")
        wait_until("the client's timer ran out", lambda: retransmits(held.client) >= 1)
        assert not readable(held.server)
    assert render.add_connections(ID, []) == ""
    lock.run("")


def test_locks_of_two_migrations_are_two_tables(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock]
) -> None:
    lock = locks(pair[0])
    lock.run("table inet somebody_else { }\n")
    for migration in (ID, OTHER):
        for stage in ("hold_syn", "full"):
            lock.run(render.lock(migration, [], [Listener(4, None, PORT)], stage=stage))
    assert sorted(lock.tables()) == sorted([render.table_name(ID), render.table_name(OTHER)])
    assert ID in lock.run(f"list table inet {render.table_name(ID)}\n")
    for _ in range(2):
        lock.run(render.unlock(ID))
    assert lock.tables() == [render.table_name(OTHER)]
    assert "somebody_else" in lock.run("list tables\n")


def test_available_is_tried_and_leaves_nothing(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock]
) -> None:
    lock = locks(pair[0])
    assert lock.available() is None
    assert lock.tables() == []
    assert lock.run("list ruleset\n") == ""


def test_a_failing_script_changes_nothing(
    pair: tuple[Host, Host], locks: Callable[[Host], Lock]
) -> None:
    lock = locks(pair[0])
    lock.run(render.lock(ID, [], [], stage="hold_syn"))
    before = lock.run("list ruleset\n")
    with pytest.raises(LockError) as caught:
        lock.run(render.lock(ID, [], [], stage="full") + "add rule inet no_such there drop\n")
    assert "No such file" in caught.value.message
    assert lock.run("list ruleset\n") == before
    with pytest.raises(LockError, match="syntax error"):
        lock.run("not nft\n")
    assert lock.run("list ruleset\n") == before


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "_LIBRARY", "libnftables-that-is-not-there.so.1")
    monkeypatch.setattr(apply, "_shared", None)
    reason = apply.available()
    assert reason is not None and "libnftables-that-is-not-there" in reason
    with pytest.raises(NftablesMissing):
        apply.warm()


def test_the_module_keeps_one_context(
    pair: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "_shared", None)
    host = pair[0]
    host.run(apply.warm)
    host.run(apply.run, render.lock(ID, [], [], stage="full"))
    assert host.run(apply.tables) == [render.table_name(ID)]
    assert host.run(apply.available) is None
    host.run(apply.run, render.unlock(ID))
    assert host.run(apply.tables) == []


def test_this_machine_has_no_lock_of_ours() -> None:
    """The tests above stay in their namespaces."""
    with contextlib.suppress(FileNotFoundError):
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True)
        assert render.table_name(ID) not in listed.stdout
