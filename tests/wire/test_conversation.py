"""The source's ear: each word of the destination by its name, and what ends the talk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.conversation import FROM_DESTINATION, Conversation
from agent.errors import AgentError, FaultInjected, PeerLost, ProtocolError
from agent.image.records import ImageError, Record, RecordEncoder
from agent.link import Link
from tests.support.polling import DEADLINE, until

FAULT = FaultInjected(point="restore_process")


class Talk:
    """A conversation, and the destination's words put into its link."""

    def __init__(self) -> None:
        self.link = Link(lambda: "ship")
        self.link.attach(lambda data: None, lambda: None)
        self.failures: list[AgentError] = []
        self.conversation = Conversation(self.link, self.failures.append)
        self._encoder = RecordEncoder()

    def say(self, kind: str, **more: Any) -> None:
        self.link.feed(b"".join(self._encoder.encode({"kind": kind, **more})))

    async def expect(self, kind: str) -> Record:
        async with asyncio.timeout(DEADLINE):
            return await self.conversation.expect(kind)


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    made = Talk()
    yield made
    await made.conversation.close()


@pytest.mark.parametrize("kind", FROM_DESTINATION)
async def test_each_word_is_given_to_who_waits_for_it(talk: Talk, kind: str) -> None:
    waiting = asyncio.create_task(talk.expect(kind))
    await asyncio.sleep(0)
    assert not waiting.done() and not talk.conversation.heard(kind)
    talk.say(kind, number=1)
    assert await waiting == {"kind": kind, "number": 1}
    assert talk.failures == [] and not talk.conversation.over


async def test_words_of_one_kind_come_in_their_order_and_wait(talk: Talk) -> None:
    for number in (1, 2):
        talk.say("pong", at=float(number))
    talk.say("locked")
    assert await talk.expect("locked") == {"kind": "locked"}
    assert talk.conversation.heard("pong")
    assert [(await talk.expect("pong"))["at"] for _ in range(2)] == [1.0, 2.0]
    assert not talk.conversation.heard("pong")


async def test_a_refusal_has_the_destinations_own_error_and_phase(talk: Talk) -> None:
    waiting = asyncio.create_task(talk.expect("prepared"))
    talk.say("failed", error=FAULT.to_wire(), phase="restore_process")
    with pytest.raises(FaultInjected, match="restore_process"):
        await waiting
    assert talk.conversation.refused and talk.conversation.over
    assert talk.conversation.failed_phase == "restore_process"
    assert [type(one) for one in talk.failures] == [FaultInjected]


async def test_what_was_said_before_the_end_still_counts(talk: Talk) -> None:
    talk.say("committed", at=1.0)
    talk.link.ended(None)
    await until(lambda: talk.conversation.over)
    assert (await talk.expect("committed"))["at"] == 1.0
    for _ in range(2):
        with pytest.raises(PeerLost, match="during ship"):
            await talk.expect("awake")


async def test_a_lost_link_is_no_refusal(talk: Talk) -> None:
    waiting = asyncio.create_task(talk.expect("committed"))
    await asyncio.sleep(0)
    talk.link.ended(OSError("cut"))
    with pytest.raises(PeerLost, match="cut"):
        await waiting
    assert talk.conversation.over and not talk.conversation.refused
    assert await talk.conversation.last_word(DEADLINE) is None


async def test_the_last_word_is_waited_for(talk: Talk) -> None:
    asking = asyncio.create_task(talk.conversation.last_word(DEADLINE))
    await asyncio.sleep(0)
    talk.say("failed", error=FAULT.to_wire(), phase="ship")
    assert type(await asking) is FaultInjected


async def test_the_last_word_is_not_waited_for_without_end(talk: Talk) -> None:
    assert await talk.conversation.last_word(0.01) is None
    assert not talk.conversation.over, "asking does not end it"
    talk.say("locked")
    await talk.expect("locked")


@pytest.mark.parametrize("kind", ["ping", "handover", "undo", "", "no-such-word"])
async def test_a_word_that_is_not_the_destinations(talk: Talk, kind: str) -> None:
    talk.say(kind)
    with pytest.raises(ProtocolError):
        await talk.expect("locked")
    assert not talk.conversation.refused


@pytest.mark.parametrize("more", [{}, {"error": None}, {"error": {"code": 5}}, {"error": []}])
async def test_a_refusal_that_cannot_be_read_is_one_all_the_same(
    talk: Talk, more: dict[str, Any]
) -> None:
    talk.say("failed", **more)
    with pytest.raises(AgentError, match="cannot be read"):
        await talk.expect("locked")
    assert talk.conversation.refused


async def test_a_damaged_word_ends_the_talk(talk: Talk) -> None:
    talk.say("locked")
    talk.link.feed(bytes(100))
    await talk.expect("locked")
    with pytest.raises(ImageError):
        await talk.expect("prepared")
    assert [type(one) for one in talk.failures] == [ImageError]


async def test_closing_tells_nobody_of_a_failure(talk: Talk) -> None:
    await talk.conversation.close()
    await talk.conversation.close()
    assert talk.failures == []
