"""A Redis client that fills it with keys, or writes all over them at a rate, and checks them.

Usage: redis_writer.py HOST PORT KEYS SIZE MB_A_SECOND
With a rate of 0 it gives every key its first value. Else it prints "ready" when it is at work,
writes until stdin ends, then reads back every key it wrote and gives each its first value again.
Prints {"errors": [str], "written": bytes, "seconds": float}. No value can be compressed.
"""

import json
import random
import socket
import sys
import threading
import time

HOST, PORT, KEYS, SIZE, RATE = sys.argv[1], *map(int, sys.argv[2:])
_EVERY = 0.005  # seconds between batches
_LOOKS = 500  # keys read, or filled, at once
_NOISE = random.Random(1).randbytes(1 << 20)


def set_command(number: int, value: bytes) -> bytes:
    key = b"key:%d" % number
    head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, len(value))
    return b"%b%b\r\n" % (head, value)


def written(number: int, version: int) -> bytes:
    """The value of a key in a version; 0 is the first."""
    at = hash((number, version)) % (len(_NOISE) - SIZE)
    return (b"%d of %d;" % (version, number) + _NOISE[at : at + SIZE])[:SIZE]


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
            self.store({number: written(number, 0) for number in some})


def fill() -> None:
    writer, begin = Writer(), time.monotonic()
    for at in range(0, KEYS, _LOOKS):
        writer.store({number: written(number, 0) for number in range(at, min(at + _LOOKS, KEYS))})
    tell(writer, KEYS * SIZE, time.monotonic() - begin)


def tell(writer: Writer, size: int, seconds: float) -> None:
    print(json.dumps({"errors": writer.errors[:9], "written": size, "seconds": seconds}))


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
    tell(writer, total, seconds)


main() if RATE else fill()
