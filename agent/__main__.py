"""The agent: guards its stdio, then serves calls until the orchestrator has gone.

Imports nothing of its own or of others at the top, so that a host without the needed
modules is told in words rather than with a traceback. It speaks of that on stderr, in one
line that `orchestrator.bootstrap` reads: `streamferry: modules-missing a,b`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

EXIT_UNUSABLE = 70
NEEDED = ("msgpack", "pyroute2", "asyncssh", "google.protobuf")


def missing_modules() -> list[str]:
    """Those of the `NEEDED` modules that this host lacks; none of them is loaded."""
    missing = []
    for name in NEEDED:
        try:
            found = find_spec(name) is not None
        except ImportError:  # the parent package of a dotted name is missing
            found = False
        if not found:
            missing.append(name)
    return missing


def main() -> None:
    """Serve on stdio; ends with status 0, or 70 where this host cannot run the agent."""
    from agent.stdio import guard_stdio

    try:
        read_fd, write_fd = guard_stdio()
    except OSError as error:
        sys.exit(f"streamferry: no stdio to serve on: {error}")
    missing = missing_modules()
    if missing:
        print("streamferry: modules-missing", ",".join(missing), file=sys.stderr, flush=True)
        sys.exit(EXIT_UNUSABLE)

    import asyncio

    from agent.session import serve

    asyncio.run(serve(read_fd, write_fd))


if __name__ == "__main__":
    main()
