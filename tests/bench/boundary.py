"""The first new byte after the unlock, with the boundary between sent and unsent and without.

`python -m tests.bench.boundary [ROUNDS]` (root; network namespaces) prints a table and writes
results/boundary.json. A server sends to a peer that does not read, until the peer's window is shut
and most of the send queue is unsent. It is locked, dumped, forgotten and restored; the peer then
reads all it has, and from the unlock on the clock runs until the first new byte has arrived.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import statistics
import sys
import time
from typing import Any

from agent.netlock import render
from agent.netlock.apply import Nftables
from agent.tcp.dumping import dump
from agent.tcp.restoring import abandon, new_socket, release, restore
from tests.support.lab import ROOT
from tests.support.netns import Host, network, wait_until
from tests.support.tcp import Pair, connected, window_is_shut

RESULTS = ROOT / "results"
WITHIN_MS = 5.0
_CHUNK = 1 << 16
_ID = "20000101-000000-000000"


def fill(pair: Pair) -> bytes:
    """Send until nothing more is taken and the peer's window is shut; what was sent."""
    data = bytearray()
    pair.server.setblocking(False)

    def is_full() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = os.urandom(_CHUNK)
                data.extend(piece[: pair.server.send(piece)])
        return window_is_shut(pair.server)

    wait_until("the window is shut", is_full)
    return bytes(data)


def once(server: Host, client: Host, *, boundary: bool) -> dict[str, float]:
    """One move; {"ms": first new byte, "unsent": share of the send queue}. Checks every byte."""
    # A context works on the namespace it was made in; the process may have made one elsewhere.
    with (
        contextlib.closing(server.run(Nftables)) as nftables,
        connected(server, client, 4) as pair,
    ):
        data = fill(pair)
        nftables.run(render.lock(_ID, [pair.connection()], [], stage="full"))
        stream = dump(pair.server)
        abandon(pair.server)
        sock = restore(stream, server.run(new_socket, stream.family), boundary=boundary)
        received = bytearray(_read_waiting(pair.client))
        nftables.run(render.unlock(_ID))
        begin = time.monotonic()
        release(sock, stream)
        select.select([pair.client], [], [], 10)
        ms = (time.monotonic() - begin) * 1000
        pair.server = sock
        pair.client.settimeout(10)
        while len(received) < len(data):
            received += pair.client.recv(_CHUNK)
        if received != data:
            raise AssertionError("the streams differ")
        return {"ms": ms, "unsent": stream.unsent / len(stream.send_queue)}


def _read_waiting(sock: socket.socket) -> bytes:
    """What has arrived so far. The window opens, but the lock keeps the news from the server."""
    data = bytearray()
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(_CHUNK):
            data += piece
    return bytes(data)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rows: dict[str, list[dict[str, float]]] = {"boundary kept": [], "boundary ignored": []}
    with network("server", "client") as (server, client):
        for number in range(rounds):
            rows["boundary kept"].append(once(server, client, boundary=True))
            if number % 5 == 0:
                rows["boundary ignored"].append(once(server, client, boundary=False))
    summary: dict[str, Any] = {}
    print(f"{'first new byte after the unlock':34}{'min':>9}{'median':>9}{'p99':>9}{'max':>9}")
    for name, found in rows.items():
        times = sorted(row["ms"] for row in found)
        summary[name] = {
            "rounds": len(times),
            "min": times[0],
            "median": statistics.median(times),
            "p99": times[min(len(times) - 1, int(len(times) * 0.99))],
            "max": times[-1],
            "within 5 ms": sum(ms <= WITHIN_MS for ms in times),
        }
        values = "".join(f"{summary[name][key]:9.2f}" for key in ("min", "median", "p99", "max"))
        print(f"{name:34}{values}")
    kept = summary["boundary kept"]
    ratio = summary["boundary ignored"]["median"] / kept["median"]
    print(f"within {WITHIN_MS:.0f} ms: {kept['within 5 ms']} of {kept['rounds']}")
    print(f"ignored to kept (medians): {ratio:.0f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "boundary.json").write_text(
        json.dumps({"summary": summary, "ratio": ratio, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
