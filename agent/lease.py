"""The orchestrator's lease on an agent: it says every few seconds that it lives.

Where it is cut off in silence, the agent's stdin never ends: sshd knows nothing of it for hours. An
agent that has heard nothing for `MISSES` beats acts as if the orchestrator had gone. Beats are
counted, not seconds: after its host stood still, an agent first reads what has come meanwhile.
"""

from __future__ import annotations

ALIVE = "alive"  # the event, with no data
BEAT = 5.0  # seconds
MISSES = 5


class Lease:
    """Counts the beats that were missed in a row. No I/O."""

    def __init__(self) -> None:
        self._begun = False
        self._missed = 0

    def begin(self, _data: object = None) -> None:
        """The first beat has come: from now on they are expected."""
        self._begun = True

    def heard(self) -> None:
        """Something has come from the orchestrator, whatever it is."""
        self._missed = 0

    def missed(self) -> bool:
        """A beat's time has gone by; whether the lease has ended with it."""
        self._missed += 1
        return self._begun and self._missed > MISSES
