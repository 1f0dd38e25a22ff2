"""What a stream costs: steal, dump, encode, decode, restore and release, in microseconds each.

`python -m tests.bench.streams [COUNT ...]` (root; one network namespace) prints a table and writes
results/streams.json. Established connections over loopback are held by processes of their own, at
most `BATCH` each (the limit of open files), and taken from them as the agents take them. More than
that are there at the same time, and go through the engine batch by batch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, new_socket, release, restore
from agent.tcp.steal import socket_descriptors, steal
from agent.tcp.stream import Stream
from tests.support.lab import ROOT
from tests.support.netns import Host, network

RESULTS = ROOT / "results"
BATCH = 10_000
COUNTS = (1_000, 10_000, 50_000)
ROUNDS = 3
STEPS = ("steal", "dump", "encode", "decode", "restore", "release")
_fork = multiprocessing.get_context("fork")


def _serve(listener: socket.socket, count: int, pipe: Any) -> None:
    held = [listener.accept()[0] for _ in range(count)]
    listener.close()
    pipe.send(len(held))
    pipe.recv()
    os._exit(0)  # the sockets are in repair mode: they go without a word


def _connect(address: tuple[str, int], count: int, pipe: Any) -> None:
    held = []
    for _ in range(count):
        held.append(socket.create_connection(address))
    pipe.send(len(held))
    pipe.recv()
    os._exit(0)


class Holders:
    """Two processes with the ends of `count` connections between them."""

    def __init__(self, host: Host, count: int) -> None:
        with host.socket() as listener:
            listener.bind((host.address4, 0))
            listener.listen(4096)
            name = listener.getsockname()
            self.server, self._pipe = self._start(host, _serve, listener, count)
        self._client, self._client_pipe = self._start(host, _connect, name, count)
        for pipe in (self._client_pipe, self._pipe):
            pipe.recv()

    @staticmethod
    def _start(host: Host, run: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
        ours, theirs = _fork.Pipe()
        process = _fork.Process(target=run, args=(*arguments, theirs), daemon=True)
        host.run(process.start)  # in its network namespace
        theirs.close()
        return process, ours

    def end_server(self) -> None:
        self._pipe.send(None)
        self.server.join()

    def end(self) -> None:
        self._client_pipe.send(None)
        self._client.join()


def once(host: Host, count: int) -> dict[str, float]:
    """Microseconds a stream of each step, with `count` connections at the same time."""
    spent = dict.fromkeys(STEPS, 0.0)
    sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
    with contextlib.ExitStack() as stack:
        batches = []
        for size in sizes:
            batches.append(Holders(host, size))
            stack.callback(batches[-1].end)
        for holders in batches:
            _move(host, holders, spent)
    return {name: seconds / count * 1e6 for name, seconds in spent.items()}


def _move(host: Host, holders: Holders, spent: dict[str, float]) -> None:
    @contextlib.contextmanager
    def measured(step: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        spent[step] += time.perf_counter() - begin

    gc.disable()
    pid = holders.server.pid
    pidfd = os.pidfd_open(pid)
    with measured("steal"):
        stolen = steal({pid: pidfd}, socket_descriptors([pid]))
    os.close(pidfd)
    with measured("dump"):
        streams = [dump(sock, inode) for inode, sock in stolen.items()]
    with measured("encode"):
        data = msgpack.packb([stream.to_wire() for stream in streams])
    with measured("decode"):
        streams = [Stream.from_wire(row) for row in msgpack.unpackb(data)]
    holders.end_server()
    for sock in stolen.values():
        sock.close()
    fresh = [host.run(new_socket, stream.family) for stream in streams]
    with measured("restore"):
        for stream, sock in zip(streams, fresh, strict=True):
            restore(stream, sock)
    with measured("release"):
        for stream, sock in zip(streams, fresh, strict=True):
            release(sock, stream)
    for sock in fresh:
        abandon(sock)
    gc.enable()


def main() -> None:
    counts = [int(one) for one in sys.argv[1:]] or COUNTS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with network("host") as (host,):
        for _ in range(ROUNDS):
            for count in counts:
                rows[count].append(once(host, count))
    print(f"{'us a stream: min (median)':28}" + "".join(f"{step:>16}" for step in STEPS))
    summary: dict[str, Any] = {}
    for count, found in rows.items():
        summary[str(count)] = {
            step: {"min": min(values), "median": statistics.median(values), "max": max(values)}
            for step in STEPS
            if (values := [row[step] for row in found])
        }
        shown = (summary[str(count)][step] for step in STEPS)
        cells = "".join(f"{one['min']:8.1f} ({one['median']:5.1f})" for one in shown)
        print(f"{f'{count} streams':28}{cells}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streams.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
