"""A clock of a host that is off, for all of ours that is started there afterwards.

The lab's hosts are containers: they share one wall clock, which must not be set, and a time
namespace would take CRIU and the restored process with it. So the offset is injected where the
agents read their clocks: a line that Python's `site` executes shifts `time.time` and
`time.monotonic`. The kernel's own stamps, CRIU and the workload are not shifted.
"""

from __future__ import annotations

from orchestrator.chaos.hosts import Hosts

_FILE = "chaos-clock.pth"
_DIRECTORY = "$(python3 -c 'import site; print(site.getsitepackages()[0])')"


def line(seconds: float) -> str:
    """What shifts the clocks; `site` executes a line that begins with an import."""
    nanoseconds = round(seconds * 10**9)
    shifts = [
        f"time.{name} = lambda now=time.{name}: now() + {by!r}"
        for name, by in (
            ("time", float(seconds)), ("monotonic", float(seconds)),
            ("time_ns", nanoseconds), ("monotonic_ns", nanoseconds),
        )
    ]  # fmt: skip
    return "; ".join(["import time", *shifts]) + "\n"


def skew(hosts: Hosts, host: str, seconds: float) -> None:
    directory = hosts.run(host, f"install -d {_DIRECTORY}; echo {_DIRECTORY}").split()[-1]
    hosts.put(host, f"{directory}/{_FILE}", line(seconds))
    off = "import time; print(round(time.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC)))"
    seen = hosts.run(host, f"python3 -c '{off}'")
    assert seen == str(round(seconds)), f"the clock of {host} is off by {seen} s"


def restore(hosts: Hosts, host: str) -> None:
    """Idempotent."""
    hosts.run(host, f"rm -f {_DIRECTORY}/{_FILE}")
