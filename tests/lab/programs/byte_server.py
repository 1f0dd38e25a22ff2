"""A TCP server whose streams can be checked: what it sends and expects follows from a seed.

Usage: byte_server.py HOST PORT. A client sends one line, "MODE SIZE SEED\\n":
download   the server sends SIZE bytes, also to a client that has closed its own side
upload     the server reads SIZE bytes and answers with their SHA-256 in hex and a newline
both       both at once
echo       the server sends back what it gets
Single-threaded on purpose: select, non-blocking sockets, one buffer each.
"""

import hashlib
import random
import selectors
import socket
import sys

PIECE = 1 << 16


def pieces(seed: int, size: int):
    generator = random.Random(seed)
    while size:
        data = generator.randbytes(PIECE)[: min(PIECE, size)]
        size -= len(data)
        yield data


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = b""
        self.source = iter(())
        self.exhausted = False
        self.half_closed = False
        self.expected = 0
        self.digest = hashlib.sha256()
        self.mode = ""
        self.line = b""

    def readable(self) -> bool:
        data = self.sock.recv(PIECE)
        if not data:
            self.half_closed = self.mode == "download"  # its answer may still be on the way
            return self.half_closed
        if not self.mode:
            self.line += data
            if b"\n" not in self.line:
                return True
            line, _, data = self.line.partition(b"\n")
            self.mode, size, seed = line.decode().split()
            if self.mode in ("download", "both"):
                self.source = pieces(int(seed), int(size))
            if self.mode in ("upload", "both"):
                self.expected = int(size)
        if self.mode == "echo":
            self.out += data
        elif self.expected and data:
            self.digest.update(data)
            self.expected -= len(data)
            if not self.expected:
                self.verdict = self.digest.hexdigest().encode() + b"\n"
                self.mode = "verdict"
        return True

    def writable(self) -> None:
        if not self.out:
            self.out = next(self.source, b"")
            self.exhausted = not self.out
            if not self.out and self.mode == "verdict":
                self.out, self.mode = self.verdict, "done"
        if self.out:
            self.out = self.out[self.sock.send(self.out) :]

    def wants_to_write(self) -> bool:
        if self.mode in ("download", "both"):
            return bool(self.out) or not self.exhausted
        return bool(self.out) or self.mode == "verdict"


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, Client(sock))
                continue
            client = key.data
            try:
                alive = True
                if events & selectors.EVENT_READ:
                    alive = client.readable()
                if alive and events & selectors.EVENT_WRITE:
                    client.writable()
                if alive:
                    wanted = 0 if client.half_closed else selectors.EVENT_READ
                    if client.wants_to_write():
                        wanted |= selectors.EVENT_WRITE
                    alive = bool(wanted)
                if alive:
                    if wanted != key.events:
                        selector.modify(client.sock, wanted, client)
            except BlockingIOError:
                pass
            except OSError:
                alive = False
            if not alive:
                selector.unregister(client.sock)
                client.sock.close()


main()
