"""Which workload may begin to move now: order, budgets, and how many at once. Pure.

What it promises at any time (`check_invariants`): no more run than `max_parallel`; of no group more
are unavailable than its budget has; no host takes in more at once than it may; nothing has begun
before those that it comes after have come to their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.draining import states
from orchestrator.draining.states import MOVED, MOVING, OVER, RUNNING, UNAVAILABLE, WAITING


@dataclass(frozen=True, slots=True)
class Task:
    """One workload as the scheduler sees it."""

    key: str
    destination: str
    group: str | None = None
    after: frozenset[str] = frozenset()  # keys


class Scheduler:
    """Tasks in the order in which they begin, other things being equal."""

    def __init__(
        self,
        tasks: Iterable[Task],
        max_parallel: int,
        budgets: Mapping[str, int] | None = None,
        incoming: Mapping[str, int] | None = None,
        found: Mapping[str, str] | None = None,
    ) -> None:
        """`budgets`: group -> how many may be unavailable; `incoming`: host -> how many it takes
        in at once; `found`: the states of those that have begun already (all others wait)."""
        self._tasks = {one.key: one for one in tasks}
        self._max_parallel = max_parallel
        self._budgets = dict(budgets or {})
        self._incoming = dict(incoming or {})
        self.states = {key: (found or {}).get(key, WAITING) for key in self._tasks}
        self._stopped = ""

    def begin(self) -> Task | None:
        """The next that may begin, which is moving from now on; None where none may now."""
        for key, task in self._tasks.items():
            if self.states[key] == WAITING and self._may(task):
                self.enter(key, MOVING)
                return task
        return None

    def enter(self, key: str, state: str) -> None:
        """A task has come into a state. Raises `IllegalState`, and changes nothing."""
        self.states[key] = states.step(self.states[key], state)

    def stop(self, why: str = "nothing more is begun") -> None:
        """Nothing begins any more."""
        self._stopped = self._stopped or why

    @property
    def running(self) -> list[Task]:
        return [one for key, one in self._tasks.items() if self.states[key] in RUNNING]

    @property
    def waiting(self) -> list[Task]:
        return [one for key, one in self._tasks.items() if self.states[key] == WAITING]

    def unavailable(self, group: str) -> int:
        return sum(
            one.group == group and self.states[key] in UNAVAILABLE
            for key, one in self._tasks.items()
        )

    def why_not(self, task: Task) -> str:
        """Why a task that waits may not begin now, in words; "" where it may."""
        if self._stopped:
            return self._stopped
        if late := self._not_over(task.after):
            return f"it comes after {', '.join(late)}"
        if len(self.running) >= self._max_parallel:
            return f"{self._max_parallel} are on the move"
        limit = self._incoming.get(task.destination)
        if limit is not None and self._arriving(task.destination) >= limit:
            return f"{task.destination} takes in {limit} at once"
        budget = self._budgets.get(task.group) if task.group is not None else None
        if budget is not None and self.unavailable(task.group or "") >= budget:
            return f"of the group {task.group} no more than {budget} may be unavailable"
        return ""

    def check_invariants(self) -> None:
        """Raises `AssertionError` where a promise is broken."""
        assert len(self.running) <= self._max_parallel, "too many at once"
        for group, budget in self._budgets.items():
            assert self.unavailable(group) <= budget, f"the budget of {group} is broken"
        for host, limit in self._incoming.items():
            assert self._arriving(host) <= limit, f"{host} takes in too many"
        for key, task in self._tasks.items():
            if self.states[key] in RUNNING:
                assert not self._not_over(task.after), f"{key} is too early"

    def _may(self, task: Task) -> bool:
        return not self.why_not(task)

    def _not_over(self, keys: frozenset[str]) -> list[str]:
        return [key for key in sorted(keys) if self.states.get(key, MOVED) not in OVER]

    def _arriving(self, host: str) -> int:
        return sum(one.destination == host for one in self.running)
