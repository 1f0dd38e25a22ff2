"""Keeps asking a server over some connections, and checks each answer.

Usage: steady_client.py KIND HOST PORT CONNECTIONS PAUSE_S
KIND: echo (asyncio_echo.py), memcached (counts in it), or http (keeps the connection).
Prints "ready" once each connection has had an answer, runs until stdin ends, then prints
{"errors": [str], "total": int, "worst_ms": float}.
"""

import asyncio
import json
import sys
import time

KIND, HOST, PORT, CONNECTIONS, PAUSE = sys.argv[1:6]
stop = asyncio.Event()
errors: list[str] = []
worst = 0.0
total = 0


async def begin(number, reader, writer):
    if KIND == "memcached":
        writer.write(f"set counter-{number} 0 0 1\r\n0\r\n".encode())
        assert await reader.readline() == b"STORED\r\n"


async def ask(number, count, reader, writer):
    if KIND == "echo":
        writer.write(f"line {count}\n".encode())
        wanted = f"{count} line {count}\n".encode()
        got = await reader.readline()
    elif KIND == "memcached":
        writer.write(f"incr counter-{number} 1\r\n".encode())
        wanted, got = f"{count}\r\n".encode(), await reader.readline()
    else:
        writer.write(f"GET /small?{count} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        wanted, got = b"small\n", await reader.readexactly(length)
        assert head.startswith(b"HTTP/1.1 200 "), head
    assert got == wanted, f"{got!r} for {wanted!r}"


async def run(number, first):
    global worst, total
    try:
        reader, writer = await asyncio.open_connection(HOST, int(PORT))
        await begin(number, reader, writer)
        count = 0
        while not stop.is_set():
            count += 1
            sent = time.monotonic()
            await ask(number, count, reader, writer)
            worst, total = max(worst, time.monotonic() - sent), total + 1
            first.set()
            await asyncio.sleep(float(PAUSE))
        writer.close()
    except Exception as error:
        errors.append(f"{KIND} {number}: {error!r}")
    finally:
        first.set()


async def main():
    firsts = [asyncio.Event() for _ in range(int(CONNECTIONS))]
    tasks = [asyncio.create_task(run(number, first)) for number, first in enumerate(firsts)]
    for first in firsts:
        await first.wait()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    stop.set()
    _, late = await asyncio.wait(tasks, timeout=60)
    errors.extend([f"{len(late)} connections hang"] * bool(late))
    print(json.dumps({"errors": errors, "total": total, "worst_ms": worst * 1000}), flush=True)
    for task in late:
        task.cancel()


asyncio.run(main())
