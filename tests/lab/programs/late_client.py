"""Sends its requests in the blackout: one connection watches for it, the other asks then.

Usage: late_client.py HOST PORT, of byte_server.py. The watching connection asks all the time; when
an answer is LATE, a request goes out on the other, which was idle. Prints "ready", runs until
stdin ends, prints {"errors": [str], "asked": int, "worst_ms": float}: the requests that were sent
late, and the longest that one of them took.
"""

import json
import select
import socket
import sys
import time

HOST, PORT = sys.argv[1], int(sys.argv[2])
LATE = 0.015  # seconds


def connect():
    family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect((HOST, PORT))
    sock.sendall(b"echo 0 0\n")
    return sock


def read(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("closed by the server")
        data += part
    return data


def ask(sock, request):
    begin = time.monotonic()
    sock.sendall(request)
    if read(sock, len(request)) != request:
        raise ValueError("a wrong answer")
    return time.monotonic() - begin


errors = []
late = []
try:
    watching, idle = connect(), connect()
    for sock in (watching, idle):
        ask(sock, b"hello\n")
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        watching.sendall(b"well?\n")
        if not select.select([watching], [], [], LATE)[0]:
            late.append(ask(idle, b"still there?\n"))
        read(watching, 6)
except Exception as error:
    errors.append(repr(error))
result = {"errors": errors, "asked": len(late), "worst_ms": max(late, default=0) * 1000}
print(json.dumps(result), flush=True)
