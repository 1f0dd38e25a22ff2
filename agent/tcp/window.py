"""The windows of a stream, as TCP_REPAIR_WINDOW takes them back. No I/O."""

from __future__ import annotations

from agent.tcp.fins import received_fin
from agent.tcp.stream import Stream

_MASK = 0xFFFFFFFF


def window(stream: Stream, received: int | None = None) -> tuple[int, ...]:
    """struct tcp_repair_window for a socket that has `received` bytes of the receive queue so far.

    tcp_repair_set_window() wants what was acknowledged (rcv_wup) not to be beyond what is
    received: where it is, as the peer's FIN or data will come again, the window opens earlier
    and ends where it did.
    """
    *others, size, acknowledged = stream.window
    count = len(stream.receive_queue) if received is None else received
    end = (stream.receive_seq + count) & _MASK
    ahead = (acknowledged - end) & _MASK
    if 0 < ahead <= len(stream.receive_queue) - count + received_fin(stream.state):
        size, acknowledged = (size + ahead) & _MASK, end
    return *others, size, acknowledged
