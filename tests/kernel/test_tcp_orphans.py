"""Connections that the process has closed while their peer has not heard all of it."""

from __future__ import annotations

import asyncio

import pytest

from agent.tcp.inventory import StillClosing, check_closing, drain_closing, still_closing
from tests.support.netns import Host, wait_until
from tests.support.tcp import connected, deaf


def test_a_closed_connection_is_waited_for(pair: tuple[Host, Host], family: int) -> None:
    server, client = pair
    address = server.address(family)
    with connected(server, client, family) as held:
        with deaf(client):
            held.server.sendall(b"the last words")
            held.server.close()
            found = server.run(still_closing, [address])
            assert [(one.local, one.remote) for one in found] == [(address, client.address(family))]
            with pytest.raises(StillClosing) as raised:
                server.run(check_closing, [address])
            assert client.address(family) in raised.value.message
            assert server.run(still_closing, ["10.99.0.77", "fd99::77"]) == []
            with pytest.raises(StillClosing):
                server.run(asyncio.run, drain_closing([address]))
        wait_until("all is delivered", lambda: not server.run(still_closing, [address]))
        server.run(asyncio.run, drain_closing([address]))
        assert held.client.recv(100) == b"the last words"
