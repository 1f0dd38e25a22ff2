"""What the holder of the link's key may do after its login, and others to its connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import asyncssh
import pytest

from agent import carrier
from agent.errors import AgentError, PeerLost
from agent.image.records import (
    IMAGE_VERSION,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    Record,
    RecordEncoder,
)
from agent.image.seal import KEY_SIZE, Aead
from agent.link import Link, Relay
from agent.login import USER, LinkServer, _Session
from tests.support.polling import DEADLINE, settled, until

PING: Record = {"kind": "ping"}


class Login:
    """A destination's end, and a client that has its key and speaks for itself."""

    def __init__(self) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.link = Link(lambda: "lock")
        self.server = LinkServer(self.link, key.export_public_key().decode())
        self._options: dict[str, Any] = {
            "config": None, "known_hosts": None, "agent_path": None, "username": USER,
            "client_keys": [key],
        }  # fmt: skip

    async def session(self) -> tuple[asyncssh.SSHClientConnection, _Session]:
        told = await self.server.listen("127.0.0.1")
        connection = await asyncssh.connect("127.0.0.1", told["port"], **self._options)
        session = _Session(lambda _: None)
        await connection.create_session(lambda: session, encoding=None)
        return connection, session

    async def connection(self) -> tuple[socket.socket, _Session]:
        """Over to what follows SSH, as the source's end does it."""
        _, session = await self.session()
        session.say_key()
        await settled(session.over, self.link.opened)
        below = session.leave()
        below.setblocking(False)
        return below, session


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def failure(link: Link) -> AgentError:
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(AgentError) as raised:
            while True:
                await link.receive()
    return raised.value


def sealed(session: _Session, *records: Record) -> bytes:
    encoder = RecordEncoder(Aead(session.sending))
    return b"".join(head + bytes(body) for head, body in map(encoder.encode, records))


@contextlib.asynccontextmanager
async def logged_in() -> Any:
    login = Login()
    connection, session = await login.connection()
    try:
        yield login.link, connection, session
    finally:
        connection.close()
        login.link.close()
        await settled(login.link.over)


async def test_too_long_a_key_is_no_key() -> None:
    login = Login()
    connection, session = await login.session()
    session._channel.write(bytes(KEY_SIZE + 1))
    async with asyncio.timeout(DEADLINE):
        await connection.wait_closed()
    assert not login.link.opened.is_set() and not session.complete


async def test_without_a_key_nothing_is_opened_and_it_may_still_be_relayed() -> None:
    login = Login()
    connection, session = await login.session()
    session._channel.write(bytes(KEY_SIZE - 1))
    connection.abort()
    await settled(session.over)
    assert not login.link.opened.is_set() and not login.link.lost.is_set()
    relay = Relay(login.link, lambda name, more: None)
    head, body = RecordEncoder().encode(PING)
    relay.event({"data": head + bytes(body)})
    assert await login.link.receive() == PING


@pytest.mark.parametrize(
    "said, error",
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(40), ImageError),
        (b"SSH-2.0-x\r\n" + bytes(40), ImageError),
        (b"SF%c\0" % IMAGE_VERSION + bytes(4) + b"\xff" * 4 + bytes(16), ImageTooLarge),
        (b"SF%c\0" % IMAGE_VERSION + bytes(7) + b"\x05" + bytes(21), ImageError),
    ],
)
async def test_who_has_no_key_gets_no_record_in(said: bytes, error: type[AgentError]) -> None:
    async with logged_in() as (link, connection, _):
        await send(connection, said)
        assert type(await failure(link)) is error


async def test_what_was_sent_is_not_taken_twice() -> None:
    async with logged_in() as (link, connection, session):
        once = sealed(session, PING)
        await send(connection, once)
        async with asyncio.timeout(DEADLINE):
            assert await link.receive() == PING
        await send(connection, once)
        assert type(await failure(link)) is ImageError


async def test_its_own_words_are_not_taken_back() -> None:
    """Each direction has its own key."""
    async with logged_in() as (link, connection, session):
        link.send(PING)
        await send(connection, sealed(session, {"kind": "alive"}))
        async with asyncio.timeout(DEADLINE):
            own = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
        await send(connection, own[:4] + bytes([0, 0, 0, 1]) + own[8:])
        assert type(await failure(link)) is ImageError


async def test_cut_off_inside_a_record() -> None:
    async with logged_in() as (link, connection, session):
        await send(connection, sealed(session, PING)[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert type(await failure(link)) is ImageTruncated


async def test_nothing_is_said_to_who_may_still_take_it_for_ssh() -> None:
    async with logged_in() as (link, connection, session):
        for _ in range(3):
            link.send(PING)
        await until(lambda: link._write is not None)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        await send(connection, sealed(session, {"kind": "alive"}))
        async with asyncio.timeout(DEADLINE):
            assert await asyncio.get_running_loop().sock_recv(connection, 2) == b"SF"


async def test_a_silent_end_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a host without power, whose connection stays."""
    monkeypatch.setattr(carrier, "_BEAT", 0.02)
    async with logged_in() as (link, connection, session):
        await send(connection, sealed(session, PING))
        async with asyncio.timeout(DEADLINE):
            assert await link.receive() == PING
        error = await failure(link)
        assert isinstance(error, PeerLost) and "no sign of life" in error.message
        with pytest.raises(PeerLost):
            link.send(PING)


async def test_both_ends_stay_with_signs_of_life_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "_BEAT", 0.01)
    async with logged_in() as (link, connection, session):
        encoder = RecordEncoder(Aead(session.sending))
        for _ in range(30):
            head, body = encoder.encode({"kind": "alive"})
            await send(connection, head + bytes(body))
            async with asyncio.timeout(DEADLINE):
                await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
        assert not link.lost.is_set() and link.queued("alive") is None
