"""A client with very many connections to many_server.py; it checks each byte that comes back.

Usage: many_client.py HOST PORT COUNT RATE ACTIVE
Of COUNT connections the first ACTIVE are asked in turn, RATE times a second in all (a connection
that still owes an answer is passed over); the others rest. Prints "ready" when all are connected
and have answered once, goes on until stdin ends, asks each once more, and prints {"errors": [str],
"requests": int, "worst_ms": float, "p99_ms": float}: of the worst answer of each connection that
was asked meanwhile, the longest and the one that 99 in 100 are below.
"""

import json
import random
import select
import socket
import struct
import sys
import time

HOST, PORT = sys.argv[1], int(sys.argv[2])
COUNT, RATE, ACTIVE = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
PATIENCE = 30.0  # seconds for answers
AT_ONCE = 512  # connections and requests under way while it comes up
SIZES = random.Random(1)


class Clients:
    def __init__(self) -> None:
        self.poll = select.epoll()
        self.sockets: list[socket.socket] = []
        self.by_fd: dict[int, int] = {}
        self.due: dict[int, tuple[bytes, float]] = {}  # still to come, since when
        self.worst = [0.0] * COUNT
        self.requests = 0
        self.errors: list[str] = []

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
        for number in range(COUNT):
            sock = socket.socket(family)
            sock.settimeout(PATIENCE)
            sock.connect((HOST, PORT))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # It ends with a reset: ten thousand in TIME_WAIT would leave no ports for the next run.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            sock.setblocking(False)
            self.sockets.append(sock)
            self.by_fd[sock.fileno()] = number
            self.poll.register(sock, select.EPOLLIN)
            self.ask(number)  # its answer shows that it was accepted
            while len(self.due) > AT_ONCE:
                self.take(1)

    def ask(self, number: int) -> None:
        request = f"{number} {self.requests} ".encode().ljust(SIZES.randrange(16, 200), b".")
        self.requests += 1
        self.due[number] = (request, time.monotonic())
        try:
            self.sockets[number].send(request)
        except OSError as error:
            self.failed(number, repr(error))

    def take(self, seconds: float) -> None:
        for fd, _ in self.poll.poll(seconds):
            number = self.by_fd[fd]
            try:
                data = self.sockets[number].recv(1 << 16)
            except OSError as error:
                self.failed(number, repr(error))
                continue
            due, since = self.due.pop(number, (b"", 0.0))
            if not data or not due.startswith(data):
                self.failed(number, f"{data[:40]!r} for {due[:40]!r}")
            elif rest := due[len(data) :]:
                self.due[number] = (rest, since)
            else:
                self.worst[number] = max(self.worst[number], time.monotonic() - since)

    def failed(self, number: int, what: str) -> None:
        self.due.pop(number, None)
        self.errors.append(f"connection {number}: {what}")
        self.poll.unregister(self.sockets[number])

    def ask_all(self) -> None:
        for number in range(COUNT):
            if number not in self.due:
                self.ask(number)
            while len(self.due) > AT_ONCE:
                self.take(1)
        self.await_all()

    def await_all(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.due and not self.errors:
            self.take(1)
            if time.monotonic() > deadline:
                self.errors.append(f"{len(self.due)} connections never answered")

    def run(self) -> None:
        """Ask until stdin ends."""
        begin, turn, asked = time.monotonic(), 0, 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            wanted = int((time.monotonic() - begin) * RATE)
            for _ in range(min(wanted - asked, ACTIVE)):
                asked += 1
                if turn not in self.due:
                    self.ask(turn)
                turn = (turn + 1) % ACTIVE
            asked = wanted
            if self.errors:
                break
            self.take(max(0.0005, 0.5 / RATE))


def main() -> None:
    clients = Clients()
    clients.connect()
    clients.await_all()
    clients.worst = [0.0] * COUNT
    print("ready", flush=True)
    clients.run()
    clients.await_all()
    worst = sorted(one for one in clients.worst if one) or [0.0]
    if not clients.errors:
        clients.ask_all()
    result = {
        "errors": clients.errors[:10],
        "requests": clients.requests,
        "worst_ms": worst[-1] * 1000,
        "p99_ms": worst[int(len(worst) * 0.99)] * 1000,
    }
    print(json.dumps(result), flush=True)


main()
