"""What a connection carries before and after it has moved, in both directions.

`python -m tests.bench.throughput [ROUNDS]` (root; network namespaces) prints a table and writes
results/throughput.json. Each round fills one connection from one end for a second, moves the
server's end, and fills it for another second. Only the ratio within a round says something: without
a limit the peers' processor time is what limits them, and they share it with everything else. What
two such seconds differ by without a move is shown beside it, of connections that are only paused.
With a limit, and so with a queue in the network, windows and buffers decide, and little is noise.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.tcp import Stream, abandon, dump, release, restore
from tests.support.lab import ROOT
from tests.support.netns import Host, network
from tests.support.tcp import Pair, connected

RESULTS = ROOT / "results"
_ID = "20000101-000000-000001"
_PIECE = bytes(1 << 18)
_WARM_UP, _MEASURED = 0.5, 1.0  # seconds
_DIRECTIONS = ("download", "upload")
_WAYS = {"moved": True, "only paused": False}
_LIMITED = ("tbf", "rate", "400mbit", "burst", "256k", "latency", "20ms")  # tc-tbf(8)
_LINKS: dict[str, tuple[str, ...]] = {"no limit": (), "400 Mbit/s": _LIMITED}


class Flow:
    """Two threads that keep one direction of a connection full; one end can be exchanged."""

    def __init__(self, pair: Pair, direction: str) -> None:
        self._pair = pair
        self._server_sends = direction == "download"
        self._carried = 0
        self._ended = threading.Event()
        self._going = threading.Event()
        self._resting = threading.Event()
        self._going.set()
        self._threads = [threading.Thread(target=run) for run in (self._serve, self._consume)]
        for sock in (pair.server, pair.client):
            sock.settimeout(0.2)
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not self._going.is_set():
                self._resting.set()
                self._going.wait()
                self._resting.clear()
            self._step(self._pair.server, self._server_sends)

    def _consume(self) -> None:
        while not self._ended.is_set():
            self._step(self._pair.client, not self._server_sends)

    def _step(self, sock: socket.socket, sends: bool) -> None:
        with contextlib.suppress(TimeoutError):
            if sends:
                sock.send(_PIECE)
            else:
                self._carried += len(sock.recv(len(_PIECE)))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The server's thread leaves its socket alone."""
        self._going.clear()
        self._resting.wait()
        yield
        self._pair.server.settimeout(0.2)
        self._going.set()

    def rate(self) -> float:
        """MB/s, once it has settled."""
        time.sleep(_WARM_UP)
        begin, carried = time.monotonic(), self._carried
        time.sleep(_MEASURED)
        return (self._carried - carried) / (time.monotonic() - begin) / 1e6

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def once(server: Host, client: Host, direction: str, *, moves: bool) -> dict[str, float]:
    """{"before": MB/s, "after": MB/s}"""
    with (
        contextlib.closing(server.run(Nftables)) as nftables,
        connected(server, client, 4) as pair,
    ):
        flow = Flow(pair, direction)
        try:
            before = flow.rate()
            with flow.paused():
                if moves:
                    _move(server, pair, nftables)
            after = flow.rate()
        finally:
            flow.end()
        return {"before": before, "after": after}


def _move(server: Host, pair: Pair, nftables: Nftables) -> None:
    nftables.run(render.lock(_ID, [pair.connection()], [], stage="full"))
    stream = Stream.from_bytes(dump(pair.server).to_bytes())
    abandon(pair.server)
    pair.server = server.run(restore, stream)
    nftables.run(render.unlock(_ID))
    server.run(release, pair.server)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rows: dict[str, list[dict[str, float]]] = {}
    for link, limit in _LINKS.items():
        with network("server", "client") as hosts:
            for host in hosts:
                if limit:
                    host.command("tc", "qdisc", "add", "dev", "eth0", "root", *limit)
            for _ in range(rounds):
                for direction, way in itertools.product(_DIRECTIONS, _WAYS):
                    row = once(*hosts, direction, moves=_WAYS[way])
                    rows.setdefault(f"{link}, {direction}, {way}", []).append(row)
    heads = "".join(f"{head:>9}" for head in ("before", "after", "ratio", "min", "max"))
    print(f"{'throughput, MB/s (medians)':34}{heads}")
    summary = {}
    for name, found in rows.items():
        ratios = sorted(row["after"] / row["before"] for row in found)
        summary[name] = {
            "rounds": len(found),
            "before": statistics.median(row["before"] for row in found),
            "after": statistics.median(row["after"] for row in found),
            "ratio": statistics.median(ratios),
            "min": ratios[0],
            "max": ratios[-1],
        }
        one = summary[name]
        print(
            f"{name:34}{one['before']:9.0f}{one['after']:9.0f}{one['ratio']:9.2f}"
            f"{one['min']:9.2f}{one['max']:9.2f}"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "throughput.json").write_text(
        json.dumps({"summary": summary, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
