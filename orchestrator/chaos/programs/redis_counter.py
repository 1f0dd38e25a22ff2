"""A Redis client that counts: every connection increments a key of its own and checks each reply.

Usage: redis_counter.py HOST PORT CONNECTIONS DEPTH PAUSE_S
Prints "ready" once every connection has had a reply, runs until stdin ends, then prints one JSON
object: {"errors": [str], "counts": [int], "worst_stall_ms": float, "worst_from": float,
"stalls_ms": [the worst of each], "total": int}. Times are CLOCK_MONOTONIC, which all containers
share. For each line on stdin it prints the same, of what was until then, once every connection has
got on.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

PATIENCE = 60  # seconds: after a long outage a peer sends again only after as long a time


class Counter:
    def __init__(self, number: int, depth: int, pause: float) -> None:
        self.key = f"counter-{number}"
        self.depth, self.pause = depth, pause
        self.count = 0
        self.errors: list[str] = []
        self.worst = (0.0, 0.0)
        self.first = asyncio.Event()
        self.got_on = asyncio.Event()
        self.stopped = False

    async def run(self, host: str, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"DEL {self.key}\r\n".encode())
            await reader.readline()
            request = f"INCR {self.key}\r\n".encode() * self.depth
            while not self.stopped:
                sent = time.monotonic()
                writer.write(request)
                for _ in range(self.depth):
                    reply = await reader.readline()
                    self.count += 1
                    if reply != f":{self.count}\r\n".encode():
                        self.errors.append(f"{self.key}: {reply!r} where {self.count} was due")
                        return
                took = time.monotonic() - sent
                self.worst = max(self.worst, (took, sent))
                self.first.set()
                self.got_on.set()
                if self.pause:
                    await asyncio.sleep(self.pause)
            writer.close()
        except Exception as error:
            self.errors.append(f"{self.key}: {error!r}")
        finally:
            self.first.set()
            self.got_on.set()


def told(counters: list[Counter], hang: int) -> str:
    errors = [error for counter in counters for error in counter.errors]
    errors += [f"{hang} connections hang"] * bool(hang)
    worst, since = max(counter.worst for counter in counters)
    return json.dumps({
        "errors": errors,
        "counts": [counter.count for counter in counters],
        "worst_stall_ms": worst * 1000,
        "worst_from": since,
        "stalls_ms": [counter.worst[0] * 1000 for counter in counters],
        "total": sum(counter.count for counter in counters),
    })  # fmt: skip


async def hanging(works: list[Any]) -> int:
    """How many of these do not come to their end in time."""
    _, late = await asyncio.wait([asyncio.ensure_future(one) for one in works], timeout=PATIENCE)
    return len(late)


async def main(host: str, port: int, connections: int, depth: int, pause: float) -> None:
    counters = [Counter(number, depth, pause) for number in range(connections)]
    tasks = [asyncio.create_task(counter.run(host, port)) for counter in counters]
    for counter in counters:
        await counter.first.wait()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        for counter, task in zip(counters, tasks, strict=True):
            if not task.done():
                counter.got_on.clear()
        print(told(counters, await hanging([one.got_on.wait() for one in counters])), flush=True)
    for counter in counters:
        counter.stopped = True
    print(told(counters, await hanging([*tasks])), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    HOST, PORT, CONNECTIONS, DEPTH, PAUSE = sys.argv[1:6]
    asyncio.run(main(HOST, int(PORT), int(CONNECTIONS), int(DEPTH), float(PAUSE)))
