"""The link's port against strangers: too many, too slow, too late, or with what they recorded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from agent import link as module
from agent import login
from agent.errors import PeerLost, ProtocolError
from agent.kernel import proc
from agent.link import Link, Relay
from agent.login import MAX_STRANGERS, USER, LinkClient, LinkServer, where
from tests.support import hostile
from tests.support.polling import DEADLINE, settled, until

CLIENT: dict[str, Any] = {"config": None, "known_hosts": None, "agent_path": None}


class Port:
    """A destination's end, the one key it lets in, and who talks to it."""

    def __init__(self, key: asyncssh.SSHKey | None = None) -> None:
        self.key = key or asyncssh.generate_private_key("ssh-ed25519")
        self.link = Link(lambda: "check")
        self.server = LinkServer(self.link, self.key.export_public_key().decode())
        self.told: dict[str, Any] = {}
        self.sockets: list[socket.socket] = []

    @property
    def number(self) -> int:
        return int(self.told["port"])

    @property
    def connections(self) -> int:
        """Of this process at the port, accepted; the clients' ends are not counted."""
        return count(lambda fields: int(fields[1][-4:], 16) == self.number and fields[3] == "01")

    @property
    def listens(self) -> bool:
        return bool(count(lambda one: int(one[1][-4:], 16) == self.number and one[3] == "0A"))

    async def stranger(self) -> socket.socket:
        sock = socket.socket()
        self.sockets.append(sock)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.number))
        return sock

    async def legitimate(self) -> asyncssh.SSHClientConnection:
        options = {**CLIENT, "username": USER, "client_keys": [self.key]}
        return await asyncssh.connect("127.0.0.1", self.number, **options)


def count(wanted: Callable[[list[str]], bool]) -> int:
    """Sockets of this process in /proc/net/tcp (proc_pid_net(5))."""
    own = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(os.readlink(path))
    rows = [line.split() for line in proc.lines("/proc/self/net/tcp")[1:]]
    return sum(f"socket:[{row[9]}]" in own and wanted(row) for row in rows)


@asynccontextmanager
async def port(key: asyncssh.SSHKey | None = None) -> AsyncIterator[Port]:
    one = Port(key)
    one.told = await one.server.listen("127.0.0.1")
    try:
        yield one
    finally:
        one.server.stop_listening()
        for sock in one.sockets:
            sock.close()
        if one.link.opened.is_set():
            one.link.close()
            await settled(one.link.over)


async def ended(sock: socket.socket) -> None:
    """Read until the other side has closed."""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                pass


async def test_a_thousand_connections_are_a_few_and_the_source_still_comes_in() -> None:
    async with port() as one:
        for _ in range(1000):
            await one.stranger()
            if one.sockets[200:]:
                one.sockets.pop(0).close()
        await until(lambda: len(one.server._strangers) <= MAX_STRANGERS)
        await until(lambda: one.connections <= MAX_STRANGERS)
        async with await one.legitimate() as connection:
            await connection.create_session(asyncssh.SSHClientSession, encoding=None)
            await until(lambda: one.connections == 1)  # the others are gone
            assert not one.listens


async def test_who_does_not_log_in_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOGIN_TIMEOUT", 0.2)
    async with port() as one:
        silent, slow = await one.stranger(), await one.stranger()
        await asyncio.get_running_loop().sock_sendall(slow, b"SSH-2.0-slow\r\n")
        await asyncio.gather(ended(silent), ended(slow))
        await until(lambda: not one.server._strangers)
        assert one.listens, "the source may still come"


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"SSH-1.0-x\r\n",
                                  b"SSH-2.0-x\r\n" + b"\xff" * 4096])  # fmt: skip
async def test_who_speaks_something_else_is_shut_out(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "LOGIN_TIMEOUT", 0.2)
    async with port() as one:
        sock = await one.stranger()
        await asyncio.get_running_loop().sock_sendall(sock, said)
        await ended(sock)
        await until(lambda: not one.server._strangers)
        assert one.listens and not one.link.opened.is_set()


async def test_a_login_that_takes_its_time_is_shut_out_when_the_source_is_in() -> None:
    async with port() as one:
        waiting = await one.stranger()
        async with await one.legitimate() as first, await one.legitimate() as second:
            await first.create_session(asyncssh.SSHClientSession, encoding=None)
            await ended(waiting)
            with pytest.raises((asyncssh.Error, OSError)):
                await second.create_session(asyncssh.SSHClientSession, encoding=None)
        with pytest.raises(OSError):  # afterwards as well
            await one.stranger()


async def test_no_way_in_but_the_key() -> None:
    async with port() as one:
        attempts: list[dict[str, Any]] = [
            {"username": USER, "client_keys": [asyncssh.generate_private_key("ssh-ed25519")]},
            {"username": "", "client_keys": [one.key]},
            {"username": f"{USER}x", "client_keys": [one.key]},
            {"username": USER, "client_keys": None, "password": "streamferry"},
            {"username": USER, "client_keys": None, "preferred_auth": "keyboard-interactive"},
            {"username": USER, "client_keys": None, "preferred_auth": "hostbased"},
            {"username": USER, "client_keys": None, "preferred_auth": "none"},
        ]
        for attempt in attempts:
            with pytest.raises(asyncssh.Error):
                await asyncssh.connect("127.0.0.1", one.number, **{**CLIENT, **attempt})
        methods = await asyncssh.get_server_auth_methods(
            "127.0.0.1", one.number, username=USER, config=None
        )
        assert methods == ["publickey"]
        assert one.listens and not one.link.opened.is_set()


async def test_the_holder_of_the_key_gets_the_link_alone() -> None:
    async with port() as one:
        async with await one.legitimate() as connection:
            refused = (asyncssh.ChannelOpenError, asyncssh.ChannelListenError)
            with pytest.raises(refused):
                await connection.open_connection("127.0.0.1", one.number)
            with pytest.raises(refused):
                await connection.open_unix_connection("/run/x")
            with pytest.raises(refused):
                await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 22)
            with pytest.raises(refused):
                await connection.forward_remote_path("/run/x", "/run/y")
            with pytest.raises(refused):
                await connection.open_tun()
            assert not one.link.opened.is_set()


@pytest.mark.parametrize(
    "options", [{"command": "id"}, {"subsystem": "sftp"}, {"term_type": "xterm"}], ids=str
)
async def test_no_command_no_subsystem_no_terminal(options: dict[str, str]) -> None:
    async with port() as one:
        async with await one.legitimate() as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.create_session(asyncssh.SSHClientSession, encoding=None, **options)
            assert not one.link.opened.is_set()


async def test_an_environment_changes_nothing() -> None:
    async with port() as one:
        async with await one.legitimate() as connection:
            before = dict(os.environ)
            env = {"PATH": "/tmp", "LD_PRELOAD": "/tmp/x.so"}
            await connection.create_session(asyncssh.SSHClientSession, encoding=None, env=env)
            await until(lambda: not one.listens)
            assert dict(os.environ) == before


class Recorder:
    """Sits between the two ends, and keeps what the source sends."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.recorded = bytearray()

    async def serve(self) -> tuple[asyncio.Server, int]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(
            self._pump(reader, far_writer, self.recorded), self._pump(far_reader, writer)
        )

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kept: bytearray | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if kept is not None:
                    kept += data
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("same_key", [False, True], ids=["new key", "even for the same key"])
async def test_a_session_that_is_replayed_is_refused(same_key: bool) -> None:
    client = LinkClient(Link(lambda: "ship"))
    async with port(client._key) as first:
        recorder = Recorder(first.number)
        proxy, number = await recorder.serve()
        assert await client.connect(["127.0.0.1"], number, first.told["host_key"])
        await settled(first.link.opened)
        client._link.send({"kind": "handover", "packets": [], "stopped": []})
        async with asyncio.timeout(DEADLINE):
            assert (await first.link.receive())["kind"] == "handover"
        client.close()
        first.link.close()
        await settled(client._link.over)
        proxy.close()
    assert len(recorder.recorded) > 1000
    async with port(client._key if same_key else None) as second:
        sock = await second.stranger()
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(sock, bytes(recorder.recorded))
        await ended(sock)
        assert not second.link.opened.is_set() and second.listens
        assert not await client.connect(["127.0.0.1"], second.number, first.told["host_key"])


async def test_nothing_listens_after_a_failure() -> None:
    async with port() as one:
        waiting = await one.stranger()
        assert one.listens
        one.server.stop_listening()
        await ended(waiting)
        await until(lambda: not one.listens and not one.connections)
        assert not one.link.opened.is_set()


@pytest.mark.parametrize(
    "told",
    [
        None, [], {}, {**hostile.LINK, "port": "22"}, {**hostile.LINK, "port": 70000},
        {**hostile.LINK, "port": 0}, {**hostile.LINK, "addresses": "127.0.0.1"},
        {**hostile.LINK, "addresses": [5]}, {**hostile.LINK, "host_key": b"x"},
    ],
)  # fmt: skip
def test_no_place_to_connect_to(told: Any) -> None:
    with pytest.raises(ProtocolError):
        where(told)


async def test_strange_places_and_keys_to_connect_to() -> None:
    client = LinkClient(Link(lambda: "check"))
    assert not await client.connect(["", "a\0b", "x" * 5000, "\udcff"], 1, hostile.KEY)
    for key in ("", "ssh-ed25519", "ssh-ed25519 AAAA", "x" * 5000):
        with pytest.raises(ProtocolError):
            await client.connect(["127.0.0.1"], 1, key)
        with pytest.raises(ProtocolError):
            LinkServer(Link(lambda: "check"), key)


@pytest.mark.parametrize(
    "data",
    [{}, {"data": None}, {"data": "x"}, {"data": 5}, {"x": b""}, {"taken": 1}, {"taken": 0},
     {"taken": -1}, {"taken": "1"}, {"taken": 1 << 70}],
)  # fmt: skip
def test_what_cannot_be_relayed(data: dict[str, Any]) -> None:
    relay = Relay(Link(lambda: "ship"), lambda name, more: None)
    with pytest.raises(ProtocolError):
        relay.event(data)


async def test_nothing_is_relayed_beside_the_link() -> None:
    client = LinkClient(Link(lambda: "ship"))
    async with port(client._key) as one:
        assert await client.connect(["127.0.0.1"], one.number, one.told["host_key"])
        await settled(one.link.opened)
        relay = Relay(one.link, lambda name, more: None)
        with pytest.raises(ProtocolError):
            relay.event({"data": b"SF"})
        assert not one.link.lost.is_set()
        client.close()


async def test_what_is_relayed_and_not_taken_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_RELAYED", 1 << 20)
    sender, receiver = Link(lambda: "ship"), Link(lambda: "ship")
    relay = Relay(receiver, lambda name, more: None)
    sender.attach(lambda data: relay.event({"data": data}), lambda: None)
    for _ in range(100):
        sender.send({"kind": "file", "files": [["pages-1.img", bytes(1 << 16)]]})
    assert receiver._waiting < (1 << 20) + (1 << 18)
    with pytest.raises((ProtocolError, PeerLost)):
        while True:
            await receiver.receive()
