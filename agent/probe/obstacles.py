"""Collects what cannot move of a tree, and which of its links others hold as well."""

from __future__ import annotations

from agent.errors import Field
from agent.kernel import proc
from agent.probe.facts import Obstacle

LIMIT = 50  # of one kind; the first few say it all


class Obstacles:
    """What was found so far, in order."""

    def __init__(self) -> None:
        self.found: list[Obstacle] = []
        self._counts: dict[str, int] = {}

    def descriptor(self, code: str, pid: int, fd: int, **fields: Field) -> None:
        self.add(code, thing=f"descriptor {fd} of process {pid}", **fields)

    def mapping(self, code: str, pid: int, **fields: Field) -> None:
        self.add(code, thing=f"a mapping of process {pid}", **fields)

    def add(self, code: str, **fields: Field) -> None:
        """Note one; `code` and the fields are those of `orchestrator.refusals`."""
        self._counts[code] = self._counts.get(code, 0) + 1
        if self._counts[code] <= LIMIT:
            clean = {
                name: proc.printable(value) if isinstance(value, str) else value
                for name, value in fields.items()
            }
            self.found.append(Obstacle(code=code, fields=clean))
