"""Asks a Redis over a new connection each time, from several threads.

Usage: short_connections.py HOST PORT THREADS. Prints "ready", runs until stdin ends, then prints
{"connections": int, "worst_ms": float, "errors": [str]}.
"""

import json
import socket
import sys
import threading
import time

HOST, PORT, THREADS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stop = threading.Event()
errors = []
times = []


def ask():
    while not stop.is_set():
        begin = time.monotonic()
        try:
            with socket.create_connection((HOST, PORT), timeout=20) as sock:
                sock.sendall(b"PING\r\n")
                answer = sock.recv(100)
            if answer != b"+PONG\r\n":
                errors.append(repr(answer))
        except OSError as error:
            errors.append(repr(error))
        times.append(time.monotonic() - begin)
        time.sleep(0.01)


threads = [threading.Thread(target=ask) for _ in range(THREADS)]
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
result = {"connections": len(times), "worst_ms": max(times) * 1000, "errors": errors}
print(json.dumps(result), flush=True)
