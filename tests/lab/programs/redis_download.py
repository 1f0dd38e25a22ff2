"""Downloads a large value from Redis, again and again, and checks each by its SHA-256.

Usage: redis_download.py HOST PORT SIZE RATE
RATE: bytes a second that are read until stdin ends; the download of that moment is then finished as
fast as can be. Prints "ready" when the first is under way, then one JSON object:
{"errors": [str], "downloads": int, "lost": int}; lost: bytes that did not come, or came twice.
"""

import hashlib
import json
import random
import select
import socket
import sys
import time

HOST, PORT, SIZE, RATE = sys.argv[1], *map(int, sys.argv[2:5])
PIECE = 1 << 16
END = b"\r\n"


def connect():
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.settimeout(60)
    sock.connect((HOST, PORT))
    return sock


def line(sock):
    data = b""
    while not data.endswith(END):
        data += sock.recv(1)
    return data


class Download:
    def __init__(self, sock, wanted):
        self.sock, self.wanted = sock, wanted
        self.slow = True
        self.done = 0

    def once(self):
        self.sock.sendall(b"GET blob\r\n")
        head = line(self.sock)
        assert head == b"$%d\r\n" % SIZE, head
        digest = hashlib.sha256()
        self.done = 0
        begin = time.monotonic()
        while self.done < SIZE:
            ahead = self.done / RATE - (time.monotonic() - begin) if self.slow else 0
            ended = select.select([sys.stdin], [], [], max(ahead, 0))[0] if self.slow else []
            if ended and not sys.stdin.read(1):
                self.slow = False
            data = self.sock.recv(min(PIECE, SIZE - self.done))
            if not data:
                raise ConnectionError("the server closed the connection")
            digest.update(data)
            self.done += len(data)
        assert line(self.sock) == END
        assert digest.digest() == self.wanted, "the SHA-256 differs"


def main():
    value = random.Random(7).randbytes(SIZE)
    sock = connect()
    sock.sendall(b"*3\r\n$3\r\nSET\r\n$4\r\nblob\r\n$%d\r\n" % SIZE + value + END)
    assert line(sock) == b"+OK\r\n"
    download = Download(sock, hashlib.sha256(value).digest())
    print("ready", flush=True)
    count = 0
    try:
        while download.slow:
            download.once()
            count += 1
    except Exception as error:
        return {"errors": [repr(error)], "downloads": count, "lost": SIZE - download.done}
    return {"errors": [], "downloads": count, "lost": 0}


print(json.dumps(main()), flush=True)
