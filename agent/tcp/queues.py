"""Write into the queue that TCP_REPAIR_QUEUE has selected, or send behind the lock."""

from __future__ import annotations

import socket

_CHUNK = 64 << 10  # tcp_send_rcvq() fills one skb of at most this


def write(sock: socket.socket, data: bytes | memoryview) -> None:
    """All of `data`, without waiting. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[sock.send(view[:_CHUNK], socket.MSG_DONTWAIT) :]
