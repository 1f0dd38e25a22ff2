"""Buffers that the program did not fix go on growing after a move, those it fixed do not."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from agent.tcp import Stream, abandon, dump, release, restore
from tests.support.netns import Host
from tests.support.tcp import connected, read_exactly

_SOL = socket.SOL_SOCKET
_MOVED = 48 << 20


def carry(sender: socket.socket, receiver: socket.socket) -> None:
    data = os.urandom(1 << 20)

    def send() -> None:
        for _ in range(_MOVED >> 20):
            sender.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(_MOVED >> 20):
        assert read_exactly(receiver, len(data)) == data
    thread.join()


@pytest.mark.parametrize("fixed", [False, True])
def test_autotuning_goes_on(pair: tuple[Host, Host], family: int, fixed: bool) -> None:
    with connected(*pair, family) as held:
        if fixed:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                held.server.setsockopt(_SOL, option, 100_000)
        stream = Stream.from_bytes(dump(held.server).to_bytes())
        abandon(held.server)
        held.server = pair[0].run(restore, stream)
        pair[0].run(release, held.server)
        held.server.settimeout(10)
        before = [held.server.getsockopt(_SOL, one) for one in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
        assert before == [stream.send_buffer, stream.receive_buffer]
        carry(held.client, held.server)
        carry(held.server, held.client)
        after = [held.server.getsockopt(_SOL, one) for one in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
        if fixed:
            assert after == before
        else:
            assert after[0] > 2 * before[0] and after[1] > 2 * before[1]
