"""Becomes rsync: ended with its agent and, at the destination, writing only where it is to.

A mount namespace in which all is read-only but some directories holds whatever names and symbolic
links rsync is given, or finds.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from agent.kernel import mounts
from agent.kernel.syscalls import prctl
from agent.sync.paths import is_in
from agent.sync.rsync import ENVIRONMENT

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_UNABLE = 126  # exit status, as a shell's


def main() -> None:
    """Arguments: the agent's PID, how many directories may be written to or "all", these, then
    rsync's own."""
    agent, count, *rest = sys.argv[1:]
    os.umask(0o077)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # on which it removes what it has half written
    if os.getppid() != int(agent):
        sys.exit(_UNABLE)
    try:
        if count != "all":
            confine(rest[: int(count)])
            rest = rest[int(count) :]
        os.chdir("/")
        os.execvpe(rest[0], rest, ENVIRONMENT)
    except OSError as error:
        print(f"rsync could not be started: {error}", file=sys.stderr, flush=True)
        sys.exit(_UNABLE)


def confine(writable: Sequence[str]) -> None:
    """From now on this process can write nowhere else. Raises `OSError`."""
    mounts.leave_mounts()
    for path in writable:
        fd = mounts.open_without_symlinks(path)
        try:
            mounts.bind(fd)
        finally:
            os.close(fd)
    for place in mounts.mount_points():
        if not is_in(place, writable):
            try:
                mounts.make_read_only(place)
            except OSError as error:
                if error.errno != errno.ENOENT:  # nobody can get at what is mounted over
                    raise


if __name__ == "__main__":
    main()
