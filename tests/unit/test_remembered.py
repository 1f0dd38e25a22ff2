"""What the journal is told of restored streams, for whoever would release them."""

from __future__ import annotations

import dataclasses
import socket

from agent.kernel import uapi
from agent.successor import remembered
from agent.tcp.stream import Stream

_CUBIC = (socket.IPPROTO_TCP, uapi.TCP_CONGESTION, b"cubic".ljust(16, b"\0"))
_RENO = (socket.IPPROTO_TCP, uapi.TCP_CONGESTION, b"reno".ljust(16, b"\0"))


def stream(number: int, **fields: object) -> Stream:
    made = Stream(
        number, socket.AF_INET, uapi.TCP_ESTABLISHED, ("10.0.0.1", 80), ("10.0.0.2", 1000 + number),
        receive_seq=(1 << 32) - 1, receive_queue=b"abc", send_queue=b"defg", unsent=2,
        window=(1, 2, 3, 4, 5), options=[_CUBIC],
    )  # fmt: skip
    return dataclasses.replace(made, **fields)


def test_what_most_have_is_said_once() -> None:
    streams = [stream(number) for number in range(5)]
    streams.insert(2, stream(9, options=[_RENO]))
    found = remembered(streams)
    assert found["common"] == [list(_CUBIC)]
    (row,) = map(Stream.from_wire, found["streams"])
    assert (row.remote, row.options) == (("10.0.0.2", 1009), [_RENO])


def test_a_closing_one_has_its_row_without_its_queues() -> None:
    closing = stream(1, state=uapi.TCP_FIN_WAIT1)
    found = remembered([closing])
    assert found["common"] == []
    (row,) = map(Stream.from_wire, found["streams"])
    assert (row.state, row.receive_queue, row.send_queue, row.unsent) == (
        uapi.TCP_FIN_WAIT1, b"", b"", 0
    )  # fmt: skip
    assert row.receive_seq == 2  # behind what is in the kernel


def test_one_without_a_peer_needs_nothing() -> None:
    listening = stream(1, state=uapi.TCP_LISTEN, remote=("", 0), window=())
    assert remembered([listening]) == {"streams": [], "common": []}
