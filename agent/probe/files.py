"""What identifies a file, and whether the destination has the same one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

from agent.kernel import proc
from agent.probe import elf
from agent.probe.facts import FileFacts, FileProblem

DIGEST_LIMIT = 16 << 20  # bytes; of larger files the size has to do
GHOST_LIMIT = 64 << 20  # bytes of a deleted file that CRIU is told to take along (agent.criu)
UNSIZED = -1

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo"}


def kind_of(mode: int) -> str:
    """ "file", "directory", "fifo" or, of whatever else has a path, "device"."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


class Files:
    """The files a tree needs; each path once, with the strictest comparison asked for."""

    def __init__(self) -> None:
        self._found: dict[str, FileFacts] = {}

    def add(
        self,
        path: str,
        pid: int,
        use: str,
        *,
        sized: bool = True,
        content: bool = False,
        written: bool = False,
    ) -> None:
        """Note `path`, as it is now; one that has gone meanwhile is noted as it was used.

        `sized`: its size must agree; `content`: so must that, where it is not too large; `written`:
        it is open for writing.
        """
        known = self._found.get(path)
        if known is not None:
            written = known["written"] = known["written"] or written
            if known["size"] != UNSIZED or not sized:
                if not content or known["digest"]:
                    return
        facts = FileFacts(
            path=proc.printable(path),
            kind="file",
            size=UNSIZED,
            mode=0,
            mtime_ns=0,
            build_id="",
            digest="",
            written=written,
            pid=pid,
            use=use,
        )
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            facts["kind"], facts["mode"] = kind_of(found.st_mode), found.st_mode
            facts["mtime_ns"] = found.st_mtime_ns
            if stat.S_ISREG(found.st_mode) and sized:
                facts["size"] = found.st_size
                with contextlib.suppress(OSError):
                    facts["build_id"], facts["digest"] = identity(path, content=content)
        self._found[path] = facts

    def add_place(self, path: str, pid: int, use: str) -> None:
        """Note the directory of a deleted file: CRIU restores that there, and deletes it again."""
        place = os.path.dirname(path)
        if place not in self._found and os.path.isdir(place):
            self.add(place, pid, use)
            self._found[place]["mode"] = 0  # whatever it is

    def list(self) -> list[FileFacts]:
        return list(self._found.values())


def identity(path: str, *, content: bool) -> tuple[str, str]:
    """(build-id, SHA-256) of a regular file, each "" where it has none or none is needed.

    The digest is taken of an ELF file without a build-id, and where `content` is asked for.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return "", ""
        build_id = elf.build_id(fd)
        digest = ""
        if (content or build_id == b"") and found.st_size <= DIGEST_LIMIT:
            with open(fd, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return (build_id or b"").hex(), digest
    finally:
        os.close(fd)


def compare(facts: FileFacts) -> FileProblem | None:
    """What is wrong with this host's file of that path, if anything."""

    def problem(kind: str, detail: str = "") -> FileProblem:
        path, pid, use = facts["path"], facts["pid"], facts["use"]
        return FileProblem(path=path, problem=kind, detail=detail, pid=pid, use=use)

    try:
        found = os.stat(facts["path"])
    except (FileNotFoundError, NotADirectoryError):
        return problem("missing")
    except (OSError, ValueError) as error:
        return problem("different", f"it cannot be looked at: {error}")
    if facts["mode"] and found.st_mode != facts["mode"]:
        if kind_of(found.st_mode) != facts["kind"]:
            return problem("other", f"it is a {kind_of(found.st_mode)}, not a {facts['kind']}")
        modes = f"{stat.S_IMODE(found.st_mode):o}, not {stat.S_IMODE(facts['mode']):o}"
        return problem("different", f"its mode is {modes}")
    if facts["size"] == UNSIZED:
        return None
    if found.st_size != facts["size"]:
        return problem("different", f"it has {found.st_size} bytes, not {facts['size']}")
    if not facts["build_id"] and not facts["digest"]:
        return None
    try:
        build_id, digest = identity(facts["path"], content=bool(facts["digest"]))
    except OSError as error:
        return problem("different", f"it cannot be read: {error.strerror}")
    if build_id != facts["build_id"]:
        return problem("different", "its build-id is another")
    if facts["digest"] and digest != facts["digest"]:
        return problem("different", "its content is another")
    return None
