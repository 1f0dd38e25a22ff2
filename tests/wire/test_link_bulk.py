"""Much data over the link: both ways at once, and relayed through the orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest

from agent.errors import PeerLost
from agent.image.records import CHUNK, ImageTruncated
from agent.link import Link, Relay
from agent.login import LinkClient, LinkServer
from orchestrator.migration.result import Json
from tests.support.polling import DEADLINE, settled
from tests.wire.scripted_agent import ScriptedAgent, destination_report, source_report
from tests.wire.scripted_run import Setting

TOTAL = 64 << 20
BLOCK = bytes(range(251)) * (CHUNK // 251 + 1)  # no period of a power of two


def chunk(number: int) -> bytes:
    return BLOCK[number : number + CHUNK]


def expected(total: int) -> str:
    digest = sha256()
    for number in range(total // CHUNK):
        digest.update(chunk(number % 251))
    return digest.hexdigest()


async def send(link: Link, total: int = TOTAL) -> None:
    for number in range(total // CHUNK):
        link.send({"kind": "file", "files": [["pages-1.img", chunk(number % 251)]]})
        await link.drain()
    link.send({"kind": "end"})


async def receive(link: Link) -> str:
    digest = sha256()
    async with asyncio.timeout(2 * DEADLINE):
        while (record := await link.receive())["kind"] != "end":
            digest.update(record["files"][0][1])
    return digest.hexdigest()


@pytest.fixture
async def links() -> AsyncIterator[tuple[Link, Link]]:
    """Source and destination, connected over SSH."""
    source, destination = Link(lambda: "ship"), Link(lambda: "ship")
    client = LinkClient(source)
    server = LinkServer(destination, client.public_key)
    told = await server.listen("127.0.0.1")
    assert await client.connect(told["addresses"], told["port"], told["host_key"])
    await settled(source.opened, destination.opened)
    yield source, destination
    client.close()
    destination.close()
    await settled(source.over, destination.over)


async def test_both_ways_at_once(links: tuple[Link, Link]) -> None:
    source, destination = links
    *_, here, there = await asyncio.gather(
        send(source), send(destination), receive(source), receive(destination)
    )
    assert here == there == expected(TOTAL)
    assert not source.relayed


async def test_cut_short_the_receiver_still_has_its_word(links: tuple[Link, Link]) -> None:
    source, destination = links
    await send(source, 8 << 20)
    record = {"kind": "file", "files": [["pages-1.img", chunk(0)]]}
    source.spoil("truncate")
    source.send(record)
    assert await receive(destination) == expected(8 << 20)
    with pytest.raises(ImageTruncated):
        await destination.receive()
    await send(destination, 8 << 20)
    assert await receive(source) == expected(8 << 20)


class Relayed:
    """Two agents that only the orchestrator links, in a run of the real driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.setting = Setting(monkeypatch)
        self.source, source_relay = self._end(self.setting.source)
        self.destination, _ = self._end(self.setting.destination)
        source_relay.open()

    def _end(self, agent: ScriptedAgent) -> tuple[Link, Relay]:
        link = Link(lambda: "ship")
        relay = Relay(link, agent.server.send_event)
        agent.server.on_event("relay", relay.event)
        return link, relay

    async def run(self, source: Any, destination: Any) -> Json:
        self.setting.source.answers["source.run"] = source
        self.setting.destination.answers["destination.run"] = destination
        async with asyncio.timeout(2 * DEADLINE):
            return await self.setting.driver.migrate()


@pytest.fixture
async def relayed(monkeypatch: pytest.MonkeyPatch) -> Relayed:
    return Relayed(monkeypatch)


async def test_relayed_both_ways_at_once(relayed: Relayed) -> None:
    found: list[str] = []

    async def ship(**_: Any) -> Json:
        await send(relayed.source)
        found.append(await receive(relayed.source))
        return source_report(relayed=True)

    async def restore(**_: Any) -> Json:
        found.append(await receive(relayed.destination))
        await send(relayed.destination, 8 << 20)
        return destination_report()

    assert (await relayed.run(ship, restore))["outcome"] == "migrated"
    assert found == [expected(TOTAL), expected(8 << 20)]
    assert relayed.source.relayed and relayed.destination.relayed


@pytest.mark.parametrize("part", [0, 100], ids=["between records", "inside a record"])
async def test_relayed_from_a_source_that_dies(relayed: Relayed, part: int) -> None:
    """No connection breaks at the destination: the orchestrator tells it."""
    seen: list[Exception] = []

    async def ship(**_: Any) -> None:
        await send(relayed.source, 2 << 20)
        if part:
            head, body = relayed.source._encoder.encode({"kind": "end", "more": bytes(1000)})
            relayed.setting.source.server.send_event("relay", {"data": (head + body)[:part]})
        relayed.setting.source.die()

    async def restore(**_: Any) -> Json:
        assert await receive(relayed.destination) == expected(2 << 20)
        try:
            await relayed.destination.receive()
        except (PeerLost, ImageTruncated) as error:
            seen.append(error)
        with pytest.raises(PeerLost):
            relayed.destination.send({"kind": "failed"})
        return destination_report("rolled-back", PeerLost(phase="ship", detail="gone"))

    assert (await relayed.run(ship, restore))["outcome"] == "in-doubt"
    assert [type(one) for one in seen] == [ImageTruncated if part else PeerLost]


async def test_relayed_to_a_destination_that_dies(relayed: Relayed) -> None:
    async def ship(**_: Any) -> Json:
        await send(relayed.source, 2 << 20)
        with pytest.raises(PeerLost):
            async with asyncio.timeout(DEADLINE):
                await relayed.source.receive()
        error = PeerLost(phase="restore_process", detail="gone")
        return source_report("rolled-back", error, relayed=True)

    async def restore(**_: Any) -> None:
        await receive(relayed.destination)
        relayed.setting.destination.die()

    result = await relayed.run(ship, restore)
    assert (result["outcome"], result["error"]["code"]) == ("rolled-back", "link-lost")
