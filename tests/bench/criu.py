"""What TCP costs a stream in our engine, and in CRIU: the same sockets, one after the other.

`python -m tests.bench.criu [COUNT [ROUNDS]]` (root) prints a table and writes results/criu.json.
A process in a network namespace holds the connections. Our engine takes, dumps and releases them,
then CRIU dumps the process; our engine restores them onto fresh sockets and abandons these, then
CRIU restores the process. CRIU does so twice, with `--tcp-established` and with `--tcp-close`,
where it leaves TCP alone: the difference is its TCP. It is the one of the lab's image, run out of
the container's files (or of those in STREAMFERRY_CRIU_ROOT) on the machine itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, new_socket, release, restore
from agent.tcp.steal import socket_descriptors, steal
from tests.support.lab import ROOT
from tests.support.netns import Host, network, wait_until

RESULTS = ROOT / "results"
COUNT, ROUNDS = 10_000, 5
STEPS = ("dump", "restore")
_SERVER = """
import signal, socket, sys
listener = socket.create_server((sys.argv[1], 7000), backlog=4096)
held = [listener.accept()[0] for _ in range(int(sys.argv[2]))]
listener.close()
signal.pause()
"""
_CLIENT = """
import signal, socket, sys, time
held = []
while len(held) < int(sys.argv[2]):
    try:
        held.append(socket.create_connection((sys.argv[1], 7000)))
    except ConnectionRefusedError:
        time.sleep(0.01)
signal.pause()
"""


def criu() -> list[str]:
    """The command. The program interpreter of its own root finds the libraries there, too."""
    root = os.environ.get("STREAMFERRY_CRIU_ROOT")
    if root is None:
        state = docker.from_env().containers.get("src").attrs["State"]
        root = f"/proc/{state['Pid']}/root"
    libraries = Path(root, "usr/lib/x86_64-linux-gnu")
    loader = libraries / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), f"{root}/usr/sbin/criu"]


class Bench:
    """One host with the connections of one process."""

    def __init__(self, host: Host, count: int, command: list[str], images: Path) -> None:
        self._host, self._command, self._images = host, command, images
        self._client = self._start(_CLIENT, count)
        self._server = self._start(_SERVER, count)
        pid = self._server.pid
        wait_until("all are connected", lambda: len(os.listdir(f"/proc/{pid}/fd")) >= count + 3, 60)
        # The listener is gone: what is there now are the connections.
        wait_until("it rests", lambda: len(socket_descriptors([pid])) == count, 60)

    def _start(self, program: str, count: int) -> subprocess.Popen[bytes]:
        return self._host.run(
            subprocess.Popen,
            [sys.executable, "-S", "-c", program, self._host.address4, str(count)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", start_new_session=True,
        )  # fmt: skip

    def ours(self) -> dict[str, float]:
        """Seconds of our dump, which is undone, and of our restore once the process is gone."""
        pid = self._server.pid
        pidfd = os.pidfd_open(pid)
        stolen = steal({pid: pidfd}, socket_descriptors([pid]))
        os.close(pidfd)
        with measured() as dumping:
            streams = [dump(sock, inode) for inode, sock in stolen.items()]
        for sock, stream in zip(stolen.values(), streams, strict=True):
            release(sock, stream)
            sock.close()
        self._streams = streams
        return {"dump": dumping[0]}

    def ours_again(self) -> dict[str, float]:
        fresh = [self._host.run(new_socket, stream.family) for stream in self._streams]
        with measured() as restoring:
            for stream, sock in zip(self._streams, fresh, strict=True):
                restore(stream, sock)
        for sock in fresh:
            abandon(sock)
        return {"restore": restoring[0]}

    def dump(self, how: str, *options: str) -> float:
        images = self._images / how
        images.mkdir()
        with measured() as took:
            self._criu("dump", "-t", str(self._server.pid), "-D", str(images), f"--{how}", *options)
        return took[0]

    def restore(self, how: str) -> float:
        self._server.wait()
        with measured() as took:
            self._criu("restore", "-D", str(self._images / how), f"--{how}", "-d")
        os.kill(self._server.pid, signal.SIGKILL)
        wait_until("it is gone", lambda: not Path(f"/proc/{self._server.pid}").exists(), 60)
        return took[0]

    def _criu(self, *arguments: str) -> None:
        command = [*self._command, *arguments, "--network-lock", "skip", "-v1"]
        done = self._host.run(
            subprocess.run, command, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")

    def end(self) -> None:
        for process in (self._server, self._client):
            process.kill()
            process.wait()


@contextlib.contextmanager
def measured() -> Iterator[list[float]]:
    """A list that has the seconds in the end."""
    gc.collect()
    gc.disable()
    took: list[float] = []
    begin = time.perf_counter()
    yield took
    took.append(time.perf_counter() - begin)
    gc.enable()


def once(count: int, command: list[str]) -> dict[str, float]:
    """Microseconds a stream: {"ours dump": ...}"""
    images = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with network("host") as (host,):
            bench = Bench(host, count, command, images)
            try:
                found = {f"ours {step}": value for step, value in bench.ours().items()}
                found["CRIU without TCP dump"] = bench.dump("tcp-close", "--leave-running")
                found["CRIU dump"] = bench.dump("tcp-established")
                for step, value in bench.ours_again().items():
                    found[f"ours {step}"] = value
                found["CRIU restore"] = bench.restore("tcp-established")
                found["CRIU without TCP restore"] = bench.restore("tcp-close")
            finally:
                bench.end()
    finally:
        shutil.rmtree(images)
    return {name: value / count * 1e6 for name, value in found.items()}


def main() -> None:
    count, rounds = (
        int(sys.argv[at]) if len(sys.argv) > at else fallback
        for at, fallback in ((1, COUNT), (2, ROUNDS))
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    command = criu()
    rows = [once(count, command) for _ in range(rounds)]
    print(f"{f'us a stream, {count} streams':34}{'min':>9}{'median':>9}{'max':>9}")
    summary = {}
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        summary[name] = {"min": values[0], "median": statistics.median(values), "max": values[-1]}
        print(f"{name:34}" + "".join(f"{one:9.2f}" for one in summary[name].values()))
    for step in STEPS:
        ours, whole, without = (
            summary[f"{name} {step}"]["median"] for name in ("ours", "CRIU", "CRIU without TCP")
        )
        print(
            f"{step}: ours to CRIU's TCP {ours:.1f} to {whole - without:.1f}, "
            f"{ours / (whole - without):.2f}; to all that CRIU does {ours / whole:.2f} (medians)"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "criu.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
