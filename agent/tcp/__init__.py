"""Move TCP connections between sockets, processes and hosts: see docs/tcp-engine.md.

    stream = dump(sock)        # in repair mode now: silent
    data = stream.to_bytes()
    abandon(sock)              # closed without a word to the peer

    sock = restore(Stream.from_bytes(data))  # in repair mode, behind the lock
    release(sock)              # after the unlock, with the local address here: the peer is woken

Between the first line and the last the connection must be locked (`agent.netlock`): a segment
that reaches a host without the socket is answered with a reset. Needs CAP_NET_ADMIN; CAP_NET_RAW
to bring back states that take a segment from the peer.
"""

from agent.tcp.library import disconnect, dump, release, restore
from agent.tcp.restoring import abandon
from agent.tcp.stream import Stream, StreamError

__all__ = ["Stream", "StreamError", "abandon", "disconnect", "dump", "release", "restore"]
