"""`make soak`: many migrations there and back in one run, and nothing grows on either host.

    python -m tests.chaos.soak [--migrations N] [--connections N] [--json FILE]

A Redis under clients that count moves to and fro. Every so often both hosts are looked at: memory
of all processes, descriptors, processes, mappings of the Redis, nftables, files, addresses. Prints
the samples and what has grown; exits 1 where something has, or a client saw an error.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from tests.support.lab import HOSTS, JOURNALS, SERVICE, Lab
from tests.support.workloads import start_redis

_EVERY = 50  # migrations between samples; even, so that the process is where it was
_WARM = 10  # migrations before the first sample: caches of the kernel and of Redis fill
_MEMORY = 1.10  # what memory may be of what it was: a fragmented heap is no leak
_SLACK = 4096  # KiB
_LOOKS = 5

# One number a line, in this order. The shell counts processes and descriptors by itself, before it
# has started anything: what the members of a pipeline have open is a matter of who is first.
_LOOK = f"""
set -- /proc/[0-9]*; processes=$#
set -- /proc/[0-9]*/fd/*; descriptors=$#
ps -eo rss= | awk '{{ s += $1 }} END {{ print s }}'
echo $processes
echo $descriptors
nft list tables | wc -l
find /run /tmp /dev/shm /var/lib/streamferry -type f 2>/dev/null | wc -l
find {JOURNALS} /run/streamferry -mindepth 1 ! -name host-id 2>/dev/null | wc -l
ip -o addr | wc -l
cat /proc/PID/maps 2>/dev/null | wc -l
ls /proc/PID/fd 2>/dev/null | wc -l
"""
_NAMES = ("memory_kib", "processes", "descriptors", "tables", "files", "own_files", "addresses",
          "mappings_of_it", "descriptors_of_it")  # fmt: skip


@dataclass
class Soak:
    """What a run came to."""

    migrations: int = 0
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    samples: list[dict[str, dict[str, int]]] = field(default_factory=list)
    blackouts_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    worst_stall_ms: float = 0.0
    replies: int = 0

    @property
    def grown(self) -> list[str]:
        """What is more at the end than in the beginning."""
        found = []
        first, last = self.samples[0], self.samples[-1]
        for host in HOSTS:
            for name in _NAMES:
                before, after = first[host][name], last[host][name]
                most = before * _MEMORY + _SLACK if name == "memory_kib" else before
                if after > most:
                    found.append(f"{name} on {host}: {before}, then {after}")
        return found

    @property
    def ok(self) -> bool:
        return not (self.failed or self.errors or self.grown)


def look(lab: Lab, host: str, pid: int) -> dict[str, int]:
    """The numbers of a host, each the least of some looks: they see themselves, and who just ends.

    What has leaked is there in every look.
    """
    looks = []
    for _ in range(_LOOKS):
        lines = lab.run(host, _LOOK.replace("PID", str(pid)), check=False).split()
        looks.append(map(int, lines))
    return dict(zip(_NAMES, map(min, zip(*looks, strict=True)), strict=True))


def run(lab: Lab, migrations: int, connections: int) -> Soak:
    """Move to and fro, `migrations` times in all (an even number)."""
    lab.clear()
    pid = start_redis(lab)
    soak = Soak()
    began = time.monotonic()
    with lab.client("redis_counter.py", SERVICE, 6379, connections, 1, 0.02) as client:
        client.line()
        for number in range(1, migrations + 1):
            there, back = ("src", "dst") if number % 2 else ("dst", "src")
            done = lab.migrate(there, back, pid)
            soak.migrations = number
            if done.status:
                soak.failed.append(f"{number}: {done.result} {done.stderr}")
                break
            soak.blackouts_ms.append(done.result["blackout_ms"])
            if number == min(_WARM, migrations) or number % _EVERY == 0 or number == migrations:
                for host in HOSTS:
                    lab.settle(host)
                soak.samples.append({host: look(lab, host, pid) for host in HOSTS})
                _say(soak, number, migrations)
        seen = client.finish()
    soak.seconds = time.monotonic() - began
    soak.errors, soak.replies = seen["errors"], seen["total"]
    soak.worst_stall_ms = seen["worst_stall_ms"]
    lab.clear()
    return soak


def _say(soak: Soak, number: int, of: int) -> None:
    median = statistics.median(soak.blackouts_ms)
    print(
        f"{number:4} of {of}: blackout {median:.1f} ms (median), {max(soak.blackouts_ms):.1f} most"
    )
    for host, values in soak.samples[-1].items():
        print(f"      {host}: " + ", ".join(f"{name} {one}" for name, one in values.items()))
    sys.stdout.flush()


@click.command()
@click.option("--migrations", default=500, show_default=True)
@click.option("--connections", default=50, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path))
def main(migrations: int, connections: int, target: Path | None) -> None:
    """Move to and fro, and see whether anything grows."""
    soak = run(Lab(), migrations, connections)
    if target:
        told = {**asdict(soak), "grown": soak.grown, "ok": soak.ok}
        target.write_text(json.dumps(told, indent=1))
    print(
        f"{soak.migrations} migrations under {connections} connections in {soak.seconds:.0f} s: "
        f"{len(soak.failed)} failed, {soak.replies} replies, {len(soak.errors)} client errors, "
        f"worst stall {soak.worst_stall_ms:.0f} ms, grown: {'; '.join(soak.grown) or 'nothing'}"
    )
    for one in (*soak.failed, *soak.errors):
        print(one)
    sys.exit(not soak.ok)


if __name__ == "__main__":
    main()
