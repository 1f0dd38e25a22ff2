"""`make demo`: a Redis moves from src to dst and back while a client counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.lab import SERVICE, SSH_CONFIG, Lab  # noqa: E402
from tests.support.workloads import start_redis  # noqa: E402

CONNECTIONS = 8


def migrate(source: str, destination: str, pid: int) -> int:
    """Run the command as a user would, with its output on this terminal."""
    config = SSH_CONFIG.relative_to(ROOT)
    print(f"\n$ migrate -F {config} {source} {destination} --pid {pid}", flush=True)
    command = [sys.executable, "-m", "orchestrator", "-F", str(SSH_CONFIG)]
    return subprocess.run(
        [*command, source, destination, "--pid", str(pid)], cwd=ROOT, check=False
    ).returncode


def main() -> int:
    lab = Lab()
    lab.clear()
    pid = start_redis(lab)
    print(f"Redis runs on src at {SERVICE}:6379, PID {pid}.")
    print(f"A client on a third machine increments {CONNECTIONS} counters without a pause.")
    with lab.client("redis_counter.py", SERVICE, 6379, CONNECTIONS, 1, 0.0005) as client:
        client.line()
        statuses = [migrate("src", "dst", pid), migrate("dst", "src", pid)]
        seen = client.finish()
    lab.clear()
    print("\nWhat the client saw:")
    print(f"  {seen['total']} replies on {CONNECTIONS} connections, none opened anew")
    print(f"  {len(seen['errors'])} errors, every counter without a gap")
    print(f"  worst wait for a reply: {seen['worst_stall_ms']:.0f} ms")
    for error in seen["errors"]:
        print(f"  {error}")
    return max(*statuses, int(bool(seen["errors"])))


if __name__ == "__main__":
    sys.exit(main())
