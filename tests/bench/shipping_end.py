"""One end of a link, as `tests.bench.shipping` runs it in a host of the lab.

`shipping_end.py destination` reads the source's key, prints where it listens, and takes records
until the last. `shipping_end.py source BYTES CONTENT SQUEEZE` prints its key, reads where to
connect, and sends memory: CONTENT is "random" or "records", half of which is the same in each;
SQUEEZE is 1 where what pays may be compressed. Each prints {"seconds", "cpu"} in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from agent.image.records import CHUNK
from agent.image.squeeze import squeezer
from agent.kernel.memory import keep_freed_memory
from agent.link import Link
from agent.login import LinkClient, LinkServer, where

_MEMORY = 256 << 20  # bytes that are sent over and over: more than any cache holds


def say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


async def heard() -> dict[str, Any]:
    line = await asyncio.to_thread(sys.stdin.readline)
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


class Watch:
    """Time and CPU time of this process from here on."""

    def __init__(self) -> None:
        self._begin, self._cpu = time.monotonic(), time.process_time()

    def report(self) -> dict[str, float]:
        return {
            "seconds": time.monotonic() - self._begin,
            "cpu": time.process_time() - self._cpu,
        }


async def destination(address: str) -> None:
    link = Link(lambda: "ship")
    server = LinkServer(link, (await heard())["public_key"])
    say(await server.listen(address))
    await link.opened.wait()
    watch = Watch()
    while (await link.receive())["kind"] != "end":
        pass
    link.send({"kind": "prepared"})
    say(watch.report())
    await link.lost.wait()


def memory_of(content: str) -> memoryview:
    if content == "random":
        return memoryview(os.urandom(_MEMORY))
    rest = os.urandom(_MEMORY // 64 * 24)
    made = b"".join(
        b"key:%012d" % number + b"A" * 24 + rest[number * 24 : number * 24 + 24]
        for number in range(_MEMORY // 64)
    )
    return memoryview(made)


async def source(total: int, content: str, squeeze: bool) -> None:
    link = Link(lambda: "ship")
    client = LinkClient(link)
    memory = memory_of(content)
    say({"public_key": client.public_key})
    told = await heard()
    link.squeeze(squeezer(squeeze and told["zstd"]))
    assert await client.connect(*where(told))
    await link.opened.wait()
    watch = Watch()
    for number in range(total // CHUNK):
        at = number * CHUNK % _MEMORY
        data = b"".join([memory[at : at + CHUNK]])  # as `agent.memory.ahead` has it
        runs = [[at, CHUNK // 4096, 1]]
        link.send({"kind": "pages", "pid": 1, "runs": runs, "data": data})
        await link.drain()
    link.send({"kind": "end"})
    await link.receive()
    say(watch.report())
    client.close()


if __name__ == "__main__":
    keep_freed_memory()
    if sys.argv[1] == "source":
        asyncio.run(source(int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"))
    else:
        asyncio.run(destination(sys.argv[2]))
