"""The link against `ssh`: incompressible memory from src to dst, in turn, in one run.

`python -m tests.bench.shipping [ROUNDS [MIB]]` (root) prints a table and writes
results/shipping.json. Both send the same from memory and drop it at dst, where nothing but sshd
was there before. `ssh` is the machine's own, in the network of src, fed through a pipe as large as
one of its reads; with its own first choice of cipher, and with the one that is fastest here.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

from orchestrator.bootstrap import archive
from tests.support.lab import ROOT, SSH_CONFIG

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


def ours(total: int) -> Row:
    with end("dst", "destination", ADDRESS) as there, end("src", "source", str(total)) as here:
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


def summary(rows: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    best = max(statistics.median(row["rate"] for row in rows[way]) for way in rows if way != "ours")
    found = {}
    for way, all_of_it in rows.items():
        rates = sorted(row["rate"] for row in all_of_it)
        found[way] = {
            "min": rates[0],
            "median": statistics.median(rates),
            "max": rates[-1],
            "ratio": statistics.median(rates) / best,
            "source": statistics.median(row["source"] for row in all_of_it),
            "destination": statistics.median(row["destination"] for row in all_of_it),
        }
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    total = (int(sys.argv[2]) if len(sys.argv) > 2 else MIB) << 20
    for host in ("src", "dst"):
        execute(host, "mkdir", "-p", _FILES)
        for name, data in (("agent.zip", archive()[4:]), ("end.py", END.read_bytes())):
            execute(host, "sh", "-c", f"cat > {_FILES}/{name}", data=data)
    try:
        rows = measure(rounds, total)
    finally:
        for host in ("src", "dst"):
            execute(host, "rm", "-rf", _FILES)
    found = summary(rows)
    print(f"{f'{total >> 20} MiB from src to dst':24}{'MB/s':>9}{'min':>9}{'max':>9}{'ratio':>9}"
          f"{'CPU s src':>12}{'CPU s dst':>12}")  # fmt: skip
    for way, one in found.items():
        print(f"{way:24}{one['median']:9.0f}{one['min']:9.0f}{one['max']:9.0f}{one['ratio']:9.2f}"
              f"{one['source']:12.2f}{one['destination']:12.2f}")  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    content = {"bytes": total, "summary": found, "rows": rows}
    (RESULTS / "shipping.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
