"""The offset between the two hosts' monotonic clocks, estimated over the link.

As in NTP (RFC 5905, section 8), the exchange with the shortest round trip bounds the error by
half that trip.
"""

from __future__ import annotations

from dataclasses import dataclass

ROUNDS = 8


@dataclass(slots=True)
class ClockOffset:
    """`offset` is the destination's clock minus the source's; both fields in seconds."""

    offset: float = 0.0
    error: float = float("inf")

    def sample(self, sent: float, remote: float, received: float) -> None:
        """Take in one exchange: our clock at sending and receiving, theirs between."""
        error = (received - sent) / 2
        if error < self.error:
            self.error = error
            self.offset = remote - (sent + received) / 2
