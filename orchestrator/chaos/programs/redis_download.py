"""Downloads a large value from Redis, again and again, and checks each by its SHA-256.

Usage: redis_download.py HOST PORT SIZE RATE
RATE: bytes a second that are read until stdin ends; the download of that moment is then finished as
fast as can be. Prints "ready" when the first is under way, then one JSON object:
{"errors": [str], "downloads": int, "lost": int}; lost: bytes that did not come, or came twice. For
each line on stdin it finishes the download of that moment as fast, prints the same, and goes on.
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import sys
import time

PIECE = 1 << 16
END = b"\r\n"


def connect(host: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.settimeout(60)
    sock.connect((host, port))
    return sock


def line(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(END):
        data += sock.recv(1) or _closed()
    return data


def _closed() -> bytes:
    raise ConnectionError("the server closed the connection")


class Download:
    def __init__(self, sock: socket.socket, wanted: bytes, size: int, rate: int) -> None:
        self.sock, self.wanted, self.size, self.rate = sock, wanted, size, rate
        self.asked = ""  # "report" or "end": for what the one under way is finished
        self.done = 0

    def look(self, seconds: float) -> None:
        """Whether something is asked for, within `seconds`."""
        if not self.asked and select.select([sys.stdin], [], [], seconds)[0]:
            self.asked = "report" if sys.stdin.readline() else "end"

    def once(self) -> None:
        self.sock.sendall(b"GET blob\r\n")
        head = line(self.sock)
        assert head == b"$%d\r\n" % self.size, head
        digest = hashlib.sha256()
        self.done = 0
        begin = time.monotonic()
        while self.done < self.size:
            self.look(max(self.done / self.rate - (time.monotonic() - begin), 0))
            data = self.sock.recv(min(PIECE, self.size - self.done)) or _closed()
            digest.update(data)
            self.done += len(data)
        assert line(self.sock) == END
        assert digest.digest() == self.wanted, "the SHA-256 differs"


def main(host: str, port: int, size: int, rate: int) -> None:
    value = random.Random(7).randbytes(size)
    sock = connect(host, port)
    sock.sendall(b"*3\r\n$3\r\nSET\r\n$4\r\nblob\r\n$%d\r\n" % size + value + END)
    assert line(sock) == b"+OK\r\n"
    download = Download(sock, hashlib.sha256(value).digest(), size, rate)
    print("ready", flush=True)
    count = 0
    errors: list[str] = []
    while download.asked != "end":
        try:
            download.asked = ""
            while not download.asked and not errors:
                download.once()
                count += 1
        except Exception as error:
            errors.append(repr(error))
        while not download.asked:  # after an error nothing is left to do but to tell
            download.look(60)
        lost = size - download.done if errors else 0
        print(json.dumps({"errors": errors, "downloads": count, "lost": lost}), flush=True)


if __name__ == "__main__":
    HOST, PORT, SIZE, RATE = sys.argv[1], *map(int, sys.argv[2:5])
    main(HOST, PORT, SIZE, RATE)
