"""A Redis client that writes at a rate, all over the keys of DEBUG POPULATE, and checks them.

Usage: redis_writer.py HOST PORT KEYS SIZE MB_A_SECOND
Prints "ready" when it is at work, writes until stdin ends, then reads back every key it wrote,
gives each its first value again, and prints {"errors": [str], "written": bytes, "seconds": float}.
"""

import json
import random
import socket
import sys
import threading
import time

HOST, PORT, KEYS, SIZE, RATE = sys.argv[1], *map(int, sys.argv[2:])
_EVERY = 0.005  # seconds between batches
_LOOKS = 500  # keys read at once


def set_command(number: int, value: bytes) -> bytes:
    key = b"key:%d" % number
    head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, len(value))
    return b"%b%b\r\n" % (head, value)


def written(number: int, version: int) -> bytes:
    return (b"%d of %d;" % (version, number)).ljust(SIZE, b"x")


def first(number: int) -> bytes:
    return (b"value:%d" % number).ljust(SIZE, b"\0")


class Writer:
    def __init__(self) -> None:
        self.sock = socket.create_connection((HOST, PORT))
        self.reader = self.sock.makefile("rb", buffering=1 << 20)
        self.versions: dict[int, int] = {}
        self.errors: list[str] = []

    def store(self, values: dict[int, bytes]) -> None:
        self.sock.sendall(b"".join(set_command(*one) for one in values.items()))
        answer = self.reader.read(5 * len(values))
        if answer != b"+OK\r\n" * len(values):
            self.errors.append(f"an answer of {answer[:80]!r}")

    def batch(self, size: int) -> None:
        values = {}
        for number in random.sample(range(KEYS), size):
            self.versions[number] = version = self.versions.get(number, 0) + 1
            values[number] = written(number, version)
        self.store(values)

    def check(self) -> None:
        numbers = list(self.versions)
        for at in range(0, len(numbers), _LOOKS):
            some = numbers[at : at + _LOOKS]
            self.sock.sendall(b"".join(b"GET key:%d\r\n" % number for number in some))
            for number in some:
                self.reader.readline()
                value = self.reader.read(SIZE + 2)[:-2]
                if value != written(number, self.versions[number]):
                    self.errors.append(f"key {number} is {value[:40]!r}")
            self.store({number: first(number) for number in some})


def main() -> None:
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    writer = Writer()
    size = max(1, int(RATE * 1e6 * _EVERY / SIZE))
    begin, total = time.monotonic(), 0
    writer.batch(size)
    print("ready", flush=True)
    try:
        while not over.is_set() and not writer.errors:
            writer.batch(size)
            total += size * SIZE
            late = time.monotonic() - begin - total / (RATE * 1e6)
            if late < 0:
                time.sleep(-late)
            elif late > 0.1:  # what was lost in a stall is not made good
                begin += late
        seconds = time.monotonic() - begin
        writer.check()
    except OSError as error:
        writer.errors.append(repr(error))
        seconds = time.monotonic() - begin
    print(json.dumps({"errors": writer.errors[:9], "written": total, "seconds": seconds}))


main()
