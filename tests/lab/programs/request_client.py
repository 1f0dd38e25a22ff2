"""A request/response client over byte_server.py's echo; it notes every round trip.

Usage: request_client.py HOST PORT PAUSE_S [IDLE]
With IDLE it sends one request and then nothing until stdin ends, then one more.
Prints "ready", runs until stdin ends, prints {"errors": [str], "requests": int,
"worst_ms": float, "sent_at": float, "port": int}.
"""

import json
import select
import socket
import sys
import time

HOST, PORT, PAUSE = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
IDLE = len(sys.argv) > 4
family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
sock = socket.socket(family)
sock.settimeout(30)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.connect((HOST, PORT))
sock.sendall(b"echo 0 0\n")
errors = []
count = 0
worst = (0.0, 0.0)


def ask():
    global count, worst
    request = f"request {count:08d}\n".encode()
    sent = time.monotonic()
    sock.sendall(request)
    got = b""
    while len(got) < len(request):
        data = sock.recv(len(request) - len(got))
        if not data:
            raise ConnectionError("closed by the server")
        got += data
    if got != request:
        raise ValueError(f"{got!r} for {request!r}")
    worst = max(worst, (time.monotonic() - sent, sent))
    count += 1


try:
    ask()
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 1 if IDLE else PAUSE)[0]:
        if not IDLE:
            ask()
    ask()
except Exception as error:
    errors.append(repr(error))
result = {
    "errors": errors,
    "requests": count,
    "worst_ms": worst[0] * 1000,
    "sent_at": worst[1],
    "port": sock.getsockname()[1],
}
print(json.dumps(result), flush=True)
