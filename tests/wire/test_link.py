"""The link between two agents on the loopback: one client, one key, records whole and in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest

from agent import carrier, login
from agent import link as link_module
from agent.errors import PeerLost
from agent.image.records import ImageError, ImageTruncated, Record
from agent.image.squeeze import squeezer
from agent.link import Link, Relay
from agent.login import USER, LinkClient, LinkServer
from tests.support.polling import DEADLINE, settled, until


class Ends:
    """Both ends of a link, and what the source was told of the destination's."""

    def __init__(self) -> None:
        self.source = Link(lambda: "ship")
        self.destination = Link(lambda: "restore_process")
        self.client = LinkClient(self.source)
        self.server = LinkServer(self.destination, self.client.public_key)
        self.told: dict[str, Any] = {}

    async def listen(self) -> None:
        self.told = await self.server.listen("127.0.0.1")

    async def connect(self, client: LinkClient | None = None) -> bool:
        told = self.told
        return await (client or self.client).connect(
            told["addresses"], told["port"], told["host_key"]
        )


@asynccontextmanager
async def listening() -> AsyncIterator[Ends]:
    ends = Ends()
    await ends.listen()
    try:
        yield ends
    finally:
        ends.server.stop_listening()
        for one in (ends.source, ends.destination):
            if one.opened.is_set():
                one.close()
        if ends.source.opened.is_set():
            await settled(ends.source.over, ends.destination.over)


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    async with listening() as ends:
        assert await ends.connect()
        await settled(ends.source.opened, ends.destination.opened)
        yield ends


async def take(link: Link, number: int) -> list[Record]:
    async with asyncio.timeout(DEADLINE):
        return [await link.receive() for _ in range(number)]


def page(number: int, size: int) -> Record:
    return {"kind": "file", "files": [[f"pages-{number}", number.to_bytes(4, "big") * (size // 4)]]}


async def test_records_both_ways() -> None:
    sizes = [0, 1, 100, (64 << 10) - 1, 64 << 10, 1 << 20, 4 << 20]
    async with connected() as ends:
        for here, there in ((ends.source, ends.destination), (ends.destination, ends.source)):
            for number, size in enumerate(sizes):
                here.send(page(number, size))
                await here.drain()
            received = await take(there, len(sizes))
            assert received == [page(number, size) for number, size in enumerate(sizes)]
        assert not ends.source.relayed


async def test_only_the_one_key_is_let_in() -> None:
    async with listening() as ends:
        stranger = LinkClient(Link(lambda: "check"))
        assert not await ends.connect(stranger)
        assert not ends.destination.opened.is_set()
        assert await ends.connect()  # the stranger has not used up the one connection
        await settled(ends.destination.opened)


async def test_only_the_one_user_is_let_in_and_without_key_nobody() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    ends = Ends()
    ends.server = LinkServer(ends.destination, key.export_public_key().decode())
    await ends.listen()
    common: dict[str, Any] = {"config": None, "known_hosts": None, "agent_path": None}
    attempts: list[dict[str, Any]] = [
        {"username": "root", "client_keys": [key]},
        {"username": USER, "client_keys": None},
        {"username": USER, "client_keys": None, "password": ""},
    ]
    for attempt in attempts:
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect("127.0.0.1", ends.told["port"], **common, **attempt)
    ends.server.stop_listening()
    assert not ends.destination.opened.is_set()


async def test_only_a_plain_session_is_served() -> None:
    """No command, no subsystem, no forwarding: the holder of the key gets the link alone."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    ends = Ends()
    ends.server = LinkServer(ends.destination, key.export_public_key().decode())
    await ends.listen()
    async with asyncssh.connect(
        "127.0.0.1", ends.told["port"], config=None, known_hosts=None, agent_path=None,
        username=USER, client_keys=[key],
    ) as connection:  # fmt: skip
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 22)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.run("id")
    ends.server.stop_listening()
    assert not ends.destination.opened.is_set()


async def test_a_host_key_that_is_not_the_one_told_is_refused() -> None:
    async with listening() as ends:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        assert not await ends.client.connect(["127.0.0.1"], ends.told["port"], other)
        assert not ends.source.opened.is_set()


async def test_a_second_connection_is_refused() -> None:
    async with connected() as ends:
        with pytest.raises(OSError):  # nobody listens any more
            socket.create_connection(("127.0.0.1", ends.told["port"]), 1).close()
        ends.source.send(page(1, 8))
        assert await take(ends.destination, 1) == [page(1, 8)]


async def test_of_two_sessions_only_the_first_is_let_in() -> None:
    """Both connections were accepted before either asked for its session."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    ends = Ends()
    ends.server = LinkServer(ends.destination, key.export_public_key().decode())
    await ends.listen()
    options: dict[str, Any] = {
        "config": None, "known_hosts": None, "agent_path": None, "username": USER,
        "client_keys": [key],
    }  # fmt: skip
    async with (
        asyncssh.connect("127.0.0.1", ends.told["port"], **options) as first,
        asyncssh.connect("127.0.0.1", ends.told["port"], **options) as second,
    ):
        await first.create_session(asyncssh.SSHClientSession, encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await second.create_session(asyncssh.SSHClientSession, encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await first.create_session(asyncssh.SSHClientSession, encoding=None)


async def test_the_first_address_that_answers_is_taken() -> None:
    async with listening() as ends:
        told = ends.told
        addresses = ["127.0.0.2", "no-such-name.invalid", "127.0.0.1"]
        assert await ends.client.connect(addresses, told["port"], told["host_key"])
        await settled(ends.destination.opened)


async def test_an_address_that_stays_silent_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a firewall that drops: the port takes the connection and says nothing."""
    monkeypatch.setattr(login, "CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(lambda: "check")
        port = silent.getsockname()[1]
        key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        assert not await LinkClient(link).connect(["127.0.0.1"], port, key)
        assert not link.opened.is_set()


async def test_what_was_sent_before_the_close_still_arrives() -> None:
    async with connected() as ends:
        for number in range(50):
            ends.source.send(page(number, 1 << 20))
        ends.client.close()
        received = await take(ends.destination, 50)
        assert received == [page(number, 1 << 20) for number in range(50)]
        with pytest.raises(PeerLost):
            await take(ends.destination, 1)
        with pytest.raises(PeerLost):
            ends.source.send(page(0, 8))


async def test_a_receiver_that_is_slow_holds_up_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    high_water, kernel, number = 2 << 20, 48 << 20, 96  # what tcp(7) may keep of it
    monkeypatch.setattr(link_module, "_HIGH_WATER", high_water)
    sent = 0

    async def send_all(link: Link) -> None:
        nonlocal sent
        for index in range(number):
            link.send(page(index, 1 << 20))
            sent += 1
            await link.drain()

    async with connected() as ends:
        sending = asyncio.create_task(send_all(ends.source))
        await until(lambda: ends.destination._waiting > high_water)
        for _ in range(2 * number):  # time enough for all of it, were it not held up
            ends.destination.send({"kind": "pong"})
            await take(ends.source, 1)
        assert sent << 20 < high_water + kernel, "nothing held the sender up"
        assert ends.destination._waiting <= high_water + (1 << 21)
        received = await take(ends.destination, number)
        assert received == [page(index, 1 << 20) for index in range(number)]
        await sending


def squeezing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "_MEASURED", 1 << 60)  # what the network takes stays what is said
    link.squeeze(squeezer(True))
    link.takes(1.0)


async def test_what_is_compressed_counts_as_what_it_will_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even what fits into one packet holds the sender's next packet up."""
    high_water, number = 4 << 20, 64
    monkeypatch.setattr(link_module, "_HIGH_WATER", high_water)
    async with listening() as ends:
        squeezing(ends.source, monkeypatch)
        assert await ends.connect()
        for index in range(number):
            ends.source.send(page(index, 4 << 20))
        await until(lambda: ends.destination._waiting > high_water)
        for taken in range(number):
            assert ends.destination._waiting <= high_water + (5 << 20)
            assert await take(ends.destination, 1) == [page(taken, 4 << 20)]
            await asyncio.sleep(0)


async def test_relayed_and_compressed_it_holds_the_sender_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cable = Cable()
    source, destination = cable.links
    squeezing(source, monkeypatch)
    cable.relays[0].open()

    async def send_all() -> None:
        for index in range(64):
            source.send(page(index, 4 << 20))
            await source.drain()

    sending = asyncio.create_task(send_all())
    for taken in range(64):
        assert await take(destination, 1) == [page(taken, 4 << 20)]
        for _ in range(10):
            await asyncio.sleep(0)
    await sending
    assert sum(size for _, size in cable.events) < 1 << 20


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_an_end_is_told_to_the_other_side(who: str) -> None:
    async with connected() as ends:
        here, there = (
            (ends.source, ends.destination) if who == "source" else (ends.destination, ends.source)
        )
        here.send(page(1, 8))
        here.close()
        assert await take(there, 1) == [page(1, 8)]
        with pytest.raises(PeerLost) as raised:
            await take(there, 1)
        assert raised.value.fields["phase"] == (
            "restore_process" if who == "source" else "ship"
        )  # of the one that notices


async def test_a_cut_record_is_truncation_and_the_answer_still_comes() -> None:
    """The receiver may yet say why it failed."""
    async with connected() as ends:
        ends.source.spoil("truncate")
        ends.source.send(page(1, 4096))
        with pytest.raises(ImageTruncated):
            await take(ends.destination, 1)
        ends.destination.send({"kind": "failed"})
        assert await take(ends.source, 1) == [{"kind": "failed"}]


async def test_a_spoilt_record_ends_the_reading_and_all_before_it_is_kept() -> None:
    async with connected() as ends:
        ends.source.send(page(1, 8))
        ends.source.spoil("corrupt")
        ends.source.send(page(2, 8))
        ends.source.send(page(3, 8))
        assert await take(ends.destination, 1) == [page(1, 8)]
        for _ in range(2):
            with pytest.raises(ImageError):
                await take(ends.destination, 1)


class Cable:
    """Two relays and the orchestrator between them, which forwards each event later."""

    def __init__(self) -> None:
        self.links = (Link(lambda: "ship"), Link(lambda: "commit"))
        self.relays = [Relay(link, self._carry(side)) for side, link in enumerate(self.links)]
        self.events: list[tuple[int, int]] = []  # (from side, bytes)

    def _carry(self, side: int) -> Callable[[str, dict[str, Any]], None]:
        def carry(name: str, data: dict[str, Any]) -> None:
            assert name == "relay"
            self.events.append((side, len(data.get("data", b""))))
            asyncio.get_running_loop().call_soon(lambda: self.relays[1 - side].event(data))

        return carry


async def test_relayed_records_both_ways() -> None:
    cable = Cable()
    source, destination = cable.links
    cable.relays[0].open()
    assert source.opened.is_set() and not destination.opened.is_set()
    sizes = [8, 1 << 20, 5 << 20]
    for number, size in enumerate(sizes):
        source.send(page(number, size))
        await source.drain()
    assert await take(destination, 3) == [page(number, size) for number, size in enumerate(sizes)]
    destination.send({"kind": "pong"})
    assert await take(source, 1) == [{"kind": "pong"}]
    assert source.relayed and destination.relayed
    assert max(size for _, size in cable.events) <= 1 << 20  # each has to fit in a frame


async def test_relayed_a_receiver_that_is_slow_holds_up_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window, number = 4 << 20, 64
    monkeypatch.setattr(link_module, "_RELAYED", window)
    cable = Cable()
    source, destination = cable.links
    cable.relays[0].open()
    sent = 0

    async def send_all() -> None:
        nonlocal sent
        for index in range(number):
            source.send(page(index, 1 << 20))
            sent += 1
            await source.drain()

    sending = asyncio.create_task(send_all())
    for taken in range(number):
        for _ in range(10):
            await asyncio.sleep(0)
        assert (sent - taken) << 20 <= window + (2 << 20)
        assert await take(destination, 1) == [page(taken, 1 << 20)]
    await sending


async def test_a_relayed_link_ends_with_an_empty_event() -> None:
    cable = Cable()
    source, destination = cable.links
    cable.relays[0].open()
    source.send(page(1, 8))
    source.close()
    assert await take(destination, 1) == [page(1, 8)]
    with pytest.raises(PeerLost):
        await take(destination, 1)
    with pytest.raises(PeerLost):
        destination.send(page(2, 8))


async def test_a_relayed_record_that_is_cut_short_ends_the_link() -> None:
    cable = Cable()
    source, destination = cable.links
    cable.relays[0].open()
    source.spoil("truncate")
    source.send(page(1, 4096))
    with pytest.raises(ImageTruncated):
        await take(destination, 1)
