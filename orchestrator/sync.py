"""Which files are brought, and why others cannot be. Pure.

What the user names (`--sync`) is brought with all that is in it. `--sync-open` adds the regular
files that the process has open or mapped and that differ, are missing, or may change until the
freeze, as they are open for writing; and it makes directories that the process is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import ProtocolError
from agent.probe.facts import DestinationFacts, FileProblem, ProcessFacts
from agent.sync.look import SyncFacts, SyncPath
from agent.sync.paths import MAX_PATHS, is_in, may_replace, outermost, why_not, why_not_file
from orchestrator.refusals import Refusal, refusal

_FILES = ("file", "fifo")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for."""

    paths: tuple[str, ...] = ()
    opened: bool = False

    @property
    def any(self) -> bool:
        return bool(self.paths or self.opened)


@dataclass(frozen=True, slots=True)
class Seen:
    """What both hosts have at the paths of `to_look_at`."""

    source: SyncFacts
    destination: SyncFacts


def to_look_at(wish: Wish, process: ProcessFacts, found: DestinationFacts) -> list[str]:
    """The paths that may be brought. Raises `ProtocolError` where they are too many."""
    paths = list(dict.fromkeys([*wish.paths, *_opened(wish, process, found)]))
    if len(paths) > MAX_PATHS:
        raise ProtocolError(detail=f"{len(paths)} files to bring are over the limit of {MAX_PATHS}")
    return paths


def _opened(wish: Wish, process: ProcessFacts, found: DestinationFacts) -> list[str]:
    if not wish.opened:
        return []
    problems = {one["path"]: one for one in found["files"]}
    return [
        one["path"]
        for one in process["files"]
        if one["kind"] in _FILES
        and not is_in(one["path"], wish.paths)
        and why_not_file(one["path"]) is None
        and (one["written"] or _may_come(problems.get(one["path"])))
    ]


def _may_come(problem: FileProblem | None) -> bool:
    """Whether a file with this problem is brought without being named."""
    if problem is None:
        return False
    return problem["problem"] == "missing" or may_replace(problem["path"])


class Choice:
    """What is brought of what was looked at."""

    def __init__(
        self,
        wish: Wish,
        seen: Seen | None,
        process: ProcessFacts,
        found: DestinationFacts,
        names: tuple[str, str],
    ) -> None:
        self._seen, self._found = seen, found
        self._source, self._destination = names
        here = seen.source["paths"] if seen is not None else []
        there = seen.destination["paths"] if seen is not None else []
        self._rows = list(zip(here, there, strict=True)) if len(here) == len(there) else []
        if len(here) != len(there) or any(a["path"] != b["path"] for a, b in self._rows):
            raise ProtocolError(detail="the two hosts have looked at different paths")
        kinds = {one["path"]: one["kind"] for one in here}
        self.dirs = outermost(path for path, kind in kinds.items() if kind == "directory")
        self.files = sorted(
            path for path, kind in kinds.items() if kind in _FILES and not is_in(path, self.dirs)
        )
        directories = {one["path"] for one in process["files"] if one["kind"] == "directory"}
        self.places = sorted(
            one["path"]
            for one in found["files"]
            if wish.opened
            and one["problem"] == "missing"
            and one["path"] in directories
            and why_not(one["path"]) is None
            and not is_in(one["path"], self.dirs)
        )

    def left(self) -> list[FileProblem]:
        """The problems of files that are not brought."""
        return [one for one in self._found["files"] if not self._solves(one)]

    def _solves(self, problem: FileProblem) -> bool:
        path = problem["path"]
        if problem["problem"] == "other":
            return False
        return is_in(path, self.dirs) or path in self.files or path in self.places

    def refusals(self) -> Iterator[Refusal]:
        """Why what was asked for cannot be brought."""
        if self._seen is None:
            return
        hosts = ((self._source, self._seen.source), (self._destination, self._seen.destination))
        for host, facts in hosts:
            if facts["rsync"] is not None:
                yield refusal("rsync", host=host, detail=facts["rsync"])
        for here, there in self._rows:
            if (reason := self._why_not(here, there)) is not None:
                yield refusal("sync-path", path=here["path"], detail=reason)

    def _why_not(self, here: SyncPath, there: SyncPath) -> str | None:
        path = here["path"]
        if here["kind"] == "missing":
            return f"there is no such file on {self._source}"
        if here["real"] != path:
            return f"on {self._source} that is {here['real']}; name this"
        if here["kind"] not in (*_FILES, "directory"):
            return f"it is neither a file nor a directory, but: {here['kind']}"
        reason = why_not(path) if here["kind"] == "directory" else why_not_file(path)
        if reason is not None:
            return reason
        if there["real"] != path:
            return f"on {self._destination} that leads to {there['real']}, by a symbolic link"
        if there["kind"] not in (here["kind"], "missing"):
            return f"on {self._destination} it is a {there['kind']}, not a {here['kind']}"
        return None
