"""A Redis client that counts: every connection increments a key of its own and checks each reply.

Usage: redis_counter.py HOST PORT CONNECTIONS DEPTH PAUSE_S
Prints "ready" once every connection has had a reply, runs until stdin ends, then prints one JSON
object: {"errors": [str], "counts": [int], "worst_stall_ms": float, "worst_from": float,
"stalls_ms": [the worst of each], "total": int}. Times are CLOCK_MONOTONIC, which all containers
share.
"""

import asyncio
import json
import sys
import time

HOST, PORT, CONNECTIONS, DEPTH, PAUSE = sys.argv[1:6]
stop = asyncio.Event()


class Counter:
    def __init__(self, number: int) -> None:
        self.key = f"counter-{number}"
        self.count = 0
        self.errors: list[str] = []
        self.worst = (0.0, 0.0)
        self.first = asyncio.Event()

    async def run(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(HOST, int(PORT))
            writer.write(f"DEL {self.key}\r\n".encode())
            await reader.readline()
            request = f"INCR {self.key}\r\n".encode() * int(DEPTH)
            while not stop.is_set():
                sent = time.monotonic()
                writer.write(request)
                for _ in range(int(DEPTH)):
                    reply = await reader.readline()
                    self.count += 1
                    if reply != f":{self.count}\r\n".encode():
                        self.errors.append(f"{self.key}: {reply!r} where {self.count} was due")
                        return
                took = time.monotonic() - sent
                self.worst = max(self.worst, (took, sent))
                self.first.set()
                if float(PAUSE):
                    await asyncio.sleep(float(PAUSE))
            writer.close()
        except Exception as error:
            self.errors.append(f"{self.key}: {error!r}")
        finally:
            self.first.set()


async def main() -> None:
    counters = [Counter(number) for number in range(int(CONNECTIONS))]
    tasks = [asyncio.create_task(counter.run()) for counter in counters]
    for counter in counters:
        await counter.first.wait()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    stop.set()
    # After a long outage a peer sends again only after as long a time.
    done, late = await asyncio.wait(tasks, timeout=60)
    errors = [error for counter in counters for error in counter.errors]
    errors += [f"{len(late)} connections hang"] * bool(late)
    worst, since = max(counter.worst for counter in counters)
    result = {
        "errors": errors,
        "counts": [counter.count for counter in counters],
        "worst_stall_ms": worst * 1000,
        "worst_from": since,
        "stalls_ms": [counter.worst[0] * 1000 for counter in counters],
        "total": sum(counter.count for counter in counters),
    }
    print(json.dumps(result), flush=True)
    for task in late:
        task.cancel()


asyncio.run(main())
