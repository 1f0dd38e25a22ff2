"""rsync's command lines, its version and its errors. Pure.

Both ends are told what to do by the plan alone: the other end of a remote rsync usually takes its
options from the wire, here they are built from the same function (rsync(1), options.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from agent.errors import AgentError
from agent.sync.errors import SyncFailed, SyncFull

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
OLDEST = (3, 2, 4)  # --fsync
PARTIAL, VANISHED = 23, 24  # exit statuses: some were not brought, some have gone meanwhile

_ARGUMENTS = 256 << 10  # characters of paths that are named to it; the kernel takes more
_SHOWN = 3  # lines of an error
_WILDCARD, _ESCAPED = re.compile(r"[*?[]"), re.compile(r"[*?[\\]")
_VERSION = re.compile(r"rsync\s+version v?(\d+)\.(\d+)\.(\d+)")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_NOISE = re.compile(r"rsync error:|rsync: connection unexpectedly closed|^\s*$")


class Pass(StrEnum):
    """How a pass is made, and what both ends have to do for it."""

    FIRST = "first"  # directories with all in them; files of the same size and time are passed over
    AGAIN = "again"  # just what is named, whatever its time, which may be that of two writes
    LAST = "last"  # the same, in the blackout; to the disk it goes beside what comes next

    @property
    def options(self) -> list[str]:
        """The long ones. Of a file that changes only what differs is written, into itself."""
        return [
            "--numeric-ids",
            "--specials",  # FIFOs
            *(["--fsync"] if self != Pass.LAST else []),
            "--no-implied-dirs",
            *(["--inplace"] if self != Pass.FIRST else []),
        ]


def client(shell: str, one: Pass, but: Iterable[str] = ()) -> list[str]:
    """The sender, which reads names relative to /, each ended by a zero byte, from its stdin.

    `but`: paths that it is to pass over, as far as there is room for them.
    """
    return [
        "rsync", "-e", shell, "-lptgoHAXSR", "-r" if one == Pass.FIRST else "-I",
        "--no-inc-recursive", *one.options, "--ignore-missing-args", "--files-from=-", "--from0",
        *_excluded(but), "--", "/", "streamferry:/",
    ]  # fmt: skip


def server(one: Pass) -> list[str]:
    """The receiver; the letters after the dot are what any rsync from `OLDEST` on can."""
    letters = f"-lHogtpAX{'r' if one == Pass.FIRST else 'I'}RSe.LsfxCIvu"
    return ["rsync", "--server", letters, *one.options, "--", ".", "/"]


def _excluded(paths: Iterable[str]) -> Iterator[str]:
    """As arguments: it opens no file with patterns that has no name."""
    room = _ARGUMENTS
    for path in paths:
        if _WILDCARD.search(path):  # else a backslash means itself
            path = _ESCAPED.sub(r"\\\g<0>", path)
        room -= len(path)
        if room < 0:
            return
        yield f"--exclude={path}"


def version_problem(text: str) -> str | None:
    """What is wrong with an rsync that says this of itself (--version)."""
    found = _VERSION.search(text)
    if found is None:
        return "it does not say its version"
    version = tuple(map(int, found.groups()))
    if version < OLDEST:
        return f"version {'.'.join(map(str, version))} is older than {'.'.join(map(str, OLDEST))}"
    for what in ("ACLs", "xattrs"):
        if re.search(rf"\bno {what}\b", text):
            return f"it was built without {what}"
    return None


def failure(status: int, said: Sequence[str]) -> AgentError:
    """The error of an rsync that ended with this status, after it had said this."""
    full = [line for line in said if _FULL.search(line)]
    if full:
        return SyncFull(detail=_told(full[:1]))
    lines = [line for line in said if not _NOISE.search(line)] or list(said)
    return SyncFailed(detail=_told(lines[:_SHOWN]) or f"rsync ended with status {status}")


def _told(lines: Sequence[str]) -> str:
    return "; ".join(line.removeprefix("rsync: ").strip() for line in lines)
