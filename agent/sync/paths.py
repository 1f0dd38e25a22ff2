"""What may be brought, and what of the destination may be written for it. Pure.

Paths are absolute and in their shortest form; that no part of one is a symbolic link is checked
on each host (`agent.sync.look`, `agent.sync.places`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

MAX_PATHS = 4096
MAX_PATH = 3072  # bytes; below PATH_MAX, with room for the names inside

_KERNEL = "what is in {root} is made by each host's kernel"
_HOST = "what is in {root} is of the host that it is on"
_OURS = "{root} is where migrations keep what they need"
_BENEATH = {
    "/proc": _KERNEL,
    "/sys": _KERNEL,
    "/dev": _KERNEL,
    "/run/systemd": _HOST,
    "/run/udev": _HOST,
    "/run/dbus": _HOST,
    "/run/streamferry": _OURS,
    "/var/lib/streamferry": _OURS,
}
# Directories that hold what is of the host, beside what may be of the process.
_ITSELF = frozenset(
    "/ /bin /boot /etc /lib /lib32 /lib64 /root /run /sbin /tmp /usr /usr/bin /usr/lib /usr/lib32 "
    "/usr/lib64 /usr/libexec /usr/local /usr/local/lib /usr/sbin /usr/share /var /var/cache "
    "/var/lib /var/log /var/run /var/spool /var/tmp".split()
)
# The distribution's: a version of the other host's in them would not be known to it.
_MANAGED = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/boot", "/etc")


def why_not(path: str) -> str | None:
    """Why a path may not be brought, if it may not."""
    if not path.startswith("/") or "\0" in path or not path.isprintable():
        return "it is not an absolute path"
    if posixpath.normpath(path) != path or path.startswith("//"):
        return "it is not in its shortest form, without '..', '.' and a '/' at its end"
    if len(path.encode(errors="surrogatepass")) > MAX_PATH:
        return f"it is longer than {MAX_PATH} bytes"
    if path in _ITSELF:
        return "it holds what is of the host; name what the process needs in it"
    for root, reason in _BENEATH.items():
        if is_in(path, (root,)):
            return reason.format(root=root)
    return None


def why_not_file(path: str) -> str | None:
    """The same of a path that is a file: its directory will be written to."""
    if posixpath.dirname(path) == "/":
        return "it lies in / itself; keep it in a directory of its own"
    return why_not(path)


def may_replace(path: str) -> bool:
    """Whether a file that differs may be replaced without being named."""
    return not is_in(path, _MANAGED) or is_in(path, ("/usr/local",))


def is_in(path: str, roots: Iterable[str]) -> bool:
    """Whether it is one of these, or in one of them."""
    return any(path == root or path.startswith(f"{root.rstrip('/')}/") for root in roots)


def outermost(roots: Iterable[str]) -> list[str]:
    """Without those that lie in others; in order."""
    found: list[str] = []
    for root in sorted(set(roots)):
        if not is_in(root, found):
            found.append(root)
    return found


def writable(dirs: Iterable[str], files: Iterable[str]) -> list[str]:
    """The directories in which something is written to bring these."""
    return outermost([*dirs, *map(posixpath.dirname, files)])


def ancestors(path: str) -> list[str]:
    """The directories above it but for /, from the outermost."""
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]
