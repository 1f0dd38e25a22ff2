"""What has happened to the two FINs of a connection in each state. No I/O."""

from __future__ import annotations

from agent.kernel import uapi

FIN_RECEIVED, FIN_SENT, FIN_ACKED = 1, 2, 4
# What has happened in each state (RFC 9293, section 3.3.2). FIN_SENT: it may still be queued.
FINS = {
    uapi.TCP_ESTABLISHED: 0,
    uapi.TCP_CLOSE_WAIT: FIN_RECEIVED,
    uapi.TCP_FIN_WAIT1: FIN_SENT,
    uapi.TCP_FIN_WAIT2: FIN_SENT | FIN_ACKED,
    uapi.TCP_CLOSING: FIN_SENT | FIN_RECEIVED,
    uapi.TCP_LAST_ACK: FIN_SENT | FIN_RECEIVED,
}


def queued_fin(state: int) -> int:
    """1 where the kernel counts our FIN in the send queue (it is not acknowledged), else 0."""
    return int(FINS[state] & (FIN_SENT | FIN_ACKED) == FIN_SENT)


def received_fin(state: int) -> int:
    """1 where the kernel counts the peer's FIN in what it has received, else 0."""
    return int(bool(FINS[state] & FIN_RECEIVED))


def acked_fin(state: int) -> int:
    """1 where the sequence number of our FIN lies before the send queue, else 0."""
    return int(bool(FINS[state] & FIN_ACKED))
