"""What one look at a host has seen; `agent.leftovers.judge` says what of it is left over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from agent.journal import DIRECTORY
from agent.kernel import proc
from agent.leftovers.facts import CLEAR, Finding
from agent.plan import DEFAULT_IMAGES_DIR, Plan


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look; tests have places of their own."""

    journals: Path = DIRECTORY
    images: Path = Path(DEFAULT_IMAGES_DIR)
    cgroups: Path = Path("/sys/fs/cgroup")
    pids: Callable[[], Collection[int]] = proc.pids  # of the processes to look at
    patience: float = 1.0  # seconds: what ends by itself within them is no leftover


@dataclass(frozen=True, slots=True)
class SeenJournal:
    """A journal, read without its lock."""

    id: str
    role: str
    path: str
    busy: bool  # somebody holds its lock: the migration is under way
    problem: str = ""  # "", "empty", "damaged", "newer", "unreadable" or "exposed"
    state: str = ""
    plan: Plan | None = None  # None where it is not known what it says
    agent: tuple[int, int] = (0, 0)  # PID and birth; zeros where it is not known
    agent_state: str = ""  # the letter of its agent's state; "" when that is gone
    worker: tuple[int, int] = (0, 0)  # its CRIU
    living: tuple[int, ...] = ()  # PIDs of this host's copy


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """An agent, a guardian or a CRIU."""

    pid: int
    born: int
    parent: int
    arguments: tuple[str, ...]
    migration: str = ""  # of a guardian, or of an agent that has a journal open
    role: str = ""
    watched: bool = False  # a guardian's agent lives
    unlinked: bool = False  # an agent's journal was taken from under it
    tracees: tuple[int, ...] = ()  # a CRIU's
    serving: bool = False  # a CRIU's: has children, or a userfaultfd


@dataclass(frozen=True, slots=True)
class SeenTask:
    """A process that was looked at closely."""

    pid: int
    comm: str
    stopped: bool  # all of its threads
    tracer: int
    parasite: bool  # CRIU's code is mapped into it
    connections: tuple[str, ...]  # sockets in repair mode, "LOCAL - REMOTE"
    frozen: str = ""  # the frozen cgroup that it is in


@dataclass(frozen=True, slots=True)
class ForeignLock:
    """A lock of CRIU's."""

    name: str
    command: str  # removes it


@dataclass(slots=True)
class Seen:
    """One look."""

    journals: list[SeenJournal] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)  # ours, of family inet
    locks: list[ForeignLock] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # directories named as migrations
    agents: list[SeenProcess] = field(default_factory=list)
    guardians: list[SeenProcess] = field(default_factory=list)
    criu: list[SeenProcess] = field(default_factory=list)
    tasks: dict[int, SeenTask] = field(default_factory=dict)
    at_work: set[int] = field(default_factory=set)  # PIDs of migrations under way
    addresses: list[tuple[str, int, str]] = field(default_factory=list)  # prefix length, device
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A finding, with what is needed to clear it."""

    kind: str
    name: str
    detail: str
    verdict: str
    clearing: str
    command: str = ""
    migration: str = ""
    role: str = ""
    pid: int = 0
    born: int = 0
    held: tuple[str, int, str] | None = None  # an address, its prefix length and device

    @property
    def safe(self) -> bool:
        return self.verdict == CLEAR

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def to_wire(self) -> Finding:
        return Finding(
            kind=self.kind,
            name=self.name,
            migration=self.migration,
            detail=self.detail,
            verdict=self.verdict,
            clearing=self.clearing,
            command=self.command,
        )
