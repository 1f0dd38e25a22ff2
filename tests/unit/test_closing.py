"""The peer's FIN, which may come after acknowledgements that the peer has sent since."""

from __future__ import annotations

from typing import Any

import pytest

from agent.kernel import uapi
from agent.tcp import closing
from tests.unit.test_stream_records import stream

ESTABLISHED, CLOSE_WAIT = uapi.TCP_ESTABLISHED, uapi.TCP_CLOSE_WAIT
_ACKNOWLEDGED = slice(28, 32)  # of an IPv4 packet without options


def test_a_fin_that_was_dropped_goes_again_with_what_is_acknowledged_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([(ESTABLISHED, 0), (ESTABLISHED, 70_000), (CLOSE_WAIT, 70_000)])
    monkeypatch.setattr(closing, "_look", lambda _: next(looks))
    sent: list[bytes] = []
    one = stream(7)
    closing._peers_fin(None, one, sent.extend)  # type: ignore[arg-type]
    told = [int.from_bytes(packet[_ACKNOWLEDGED]) for packet in sent]
    assert told == [one.send_seq, (one.send_seq + 70_000) & 0xFFFFFFFF]


def test_it_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "_look", lambda _: (ESTABLISHED, 0))
    sent: list[Any] = []
    closing._peers_fin(None, stream(7), sent.append)  # type: ignore[arg-type]
    assert 10 < len(sent) <= 1000
