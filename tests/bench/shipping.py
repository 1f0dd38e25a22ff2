"""The link against `ssh`, and with compression against without: in turn, in one run.

`python -m tests.bench.shipping [ROUNDS [MIB]]` (root) prints two tables and writes
results/shipping.json. In the first, incompressible memory goes from src to dst: both send the same
from memory and drop it at dst, where nothing but sshd was there before. `ssh` is the machine's own,
in the network of src, fed through a pipe as large as one of its reads; with its own first choice of
cipher, and with the one that is fastest here.

In the second the link may compress what pays, or not, on the lab's network as it is and on one of
1 Gbit/s. The blackout is nothing else for it: what goes there goes by the same rule.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker

from orchestrator.bootstrap import archive
from tests.support.lab import ROOT, SSH_CONFIG, Lab

RESULTS = ROOT / "results"
ROUNDS, MIB = 7, 2048
ADDRESS = "10.77.0.12"  # of dst, lab/ssh_config
END = Path(__file__).with_name("shipping_end.py")
_FILES = "/run/lab-shipping"
_CHUNK = 1 << 20
_MEMORY = 256 << 20
_F_SETPIPE_SZ = 1031  # include/uapi/linux/fcntl.h
_TICK = os.sysconf("SC_CLK_TCK")
_SINK = "echo ready; cat > /dev/null; cat /proc/$PPID/stat /proc/$$/stat"
_CONTENTS = ("random", "records")
_LINKS = {
    "no limit": (),
    "1 Gbit/s": ("tbf", "rate", "1gbit", "burst", "512kb", "latency", "20ms"),
}

Row = dict[str, float]


def execute(host: str, *command: str, data: bytes = b"") -> None:
    subprocess.run(["docker", "exec", "-i", host, *command], input=data, check=True)


def end(host: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["docker", "exec", "-i", "-e", f"PYTHONPATH={_FILES}/agent.zip", host,
         "python3", f"{_FILES}/end.py", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    value = json.loads(process.stdout.readline())
    assert isinstance(value, dict)
    return value


def tell(process: subprocess.Popen[str], value: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


def ours(total: int, content: str = "random", squeeze: bool = True) -> Row:
    arguments = ("source", str(total), content, str(int(squeeze)))
    with end("dst", "destination", ADDRESS) as there, end("src", *arguments) as here:
        tell(there, line(here))
        tell(here, line(there))
        taken, sent = line(there), line(here)
    return {
        "rate": total / sent["seconds"] / 1e6,
        "source": sent["cpu"],
        "destination": taken["cpu"],
    }


def theirs(total: int, memory: memoryview, *options: str) -> Row:
    source = docker.from_env().containers.get("src").attrs["State"]["Pid"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time()
    with subprocess.Popen(
        ["nsenter", "-t", str(source), "-n", "ssh", "-F", str(SSH_CONFIG), *options, "dst", _SINK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        fcntl.fcntl(process.stdin, _F_SETPIPE_SZ, _CHUNK)
        assert process.stdout.readline() == b"ready\n"
        begin = time.monotonic()
        for number in range(total // _CHUNK):
            at = number * _CHUNK % _MEMORY
            piece = memory[at : at + _CHUNK]
            while piece:
                piece = piece[process.stdin.write(piece) :]
        process.stdin.close()
        session, shell = (one.rpartition(b")")[2].split() for one in process.stdout)
        seconds = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = sum(map(int, session[11:13])) + sum(map(int, shell[11:15]))  # proc_pid_stat(5)
    ssh = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rate": total / seconds / 1e6,
        "source": ssh + time.process_time() - own,
        "destination": ticks / _TICK,
    }


def measure(rounds: int, total: int) -> dict[str, list[Row]]:
    memory = memoryview(os.urandom(_MEMORY))
    ways: dict[str, Callable[[], Row]] = {
        "ours": lambda: ours(total),
        "ssh": lambda: theirs(total, memory),
        "ssh aes128-gcm": lambda: theirs(total, memory, "-c", "aes128-gcm@openssh.com"),
    }
    rows: dict[str, list[Row]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, run in ways.items():
            rows[way].append(run())
        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


@contextlib.contextmanager
def limited(*limit: str) -> Iterator[None]:
    device = Lab().device("src")
    if limit:
        execute("src", "tc", "qdisc", "replace", "dev", device, "root", *limit)
    try:
        yield
    finally:
        if limit:
            execute("src", "tc", "qdisc", "del", "dev", device, "root")


def measure_squeezing(rounds: int, total: int) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for link, limit in _LINKS.items():
        with limited(*limit):
            for _, content, squeeze in itertools.product(range(rounds), _CONTENTS, (False, True)):
                name = f"{link}, {content}, {'zstd' if squeeze else 'as it is'}"
                rows.setdefault(name, []).append(ours(total, content, squeeze))
    return rows


def spread(rows: list[Row], against: float) -> dict[str, float]:
    rates = sorted(row["rate"] for row in rows)
    return {
        "min": rates[0],
        "median": statistics.median(rates),
        "max": rates[-1],
        "ratio": statistics.median(rates) / against,
        "source": statistics.median(row["source"] for row in rows),
        "destination": statistics.median(row["destination"] for row in rows),
    }


def median(rows: list[Row]) -> float:
    return statistics.median(row["rate"] for row in rows)


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    print(f"{title:36}{'MB/s':>9}{'min':>9}{'max':>9}{'ratio':>9}{'CPU s src':>12}{'dst':>9}")
    for way, one in found.items():
        print(f"{way:36}{one['median']:9.0f}{one['min']:9.0f}{one['max']:9.0f}{one['ratio']:9.2f}"
              f"{one['source']:12.2f}{one['destination']:9.2f}")  # fmt: skip


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    total = (int(sys.argv[2]) if len(sys.argv) > 2 else MIB) << 20
    for host in ("src", "dst"):
        execute(host, "mkdir", "-p", _FILES)
        for name, data in (("agent.zip", archive()[4:]), ("end.py", END.read_bytes())):
            execute(host, "sh", "-c", f"cat > {_FILES}/{name}", data=data)
    try:
        rows = measure(rounds, total)
        squeezed = measure_squeezing(rounds, total // 4)
    finally:
        for host in ("src", "dst"):
            execute(host, "rm", "-rf", _FILES)
    best = max(median(rows[way]) for way in rows if way != "ours")
    found = {way: spread(one, best) for way, one in rows.items()}
    show(f"{total >> 20} MiB from src to dst", found)
    plain = {name: median(one) for name, one in squeezed.items() if "as it is" in name}
    found |= {
        name: spread(one, plain[name.replace("zstd", "as it is")]) for name, one in squeezed.items()
    }
    show(f"{total >> 22} MiB", {name: found[name] for name in squeezed})
    RESULTS.mkdir(exist_ok=True)
    content = {"bytes": total, "summary": found, "rows": rows | squeezed}
    (RESULTS / "shipping.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
