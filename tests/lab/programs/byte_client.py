"""Checks a stream of byte_server.py to the last byte.

Usage: byte_client.py HOST PORT MODE SIZE SEED RATE RECEIVE_BUFFER
RATE: bytes a second that are read until "go" comes on stdin, then as fast as can be.
MODE half-closed-download closes its own side before it reads.
Prints "ready" when the stream is under way, then one JSON object:
{"ok": bool, "received": int, "sent": int, "detail": str, "port": int}.
"""

import hashlib
import json
import random
import select
import socket
import sys
import time

HOST, PORT, MODE, SIZE, SEED, RATE, BUFFER = sys.argv[1:8]
SIZE, SEED, RATE = int(SIZE), int(SEED), int(RATE)
PIECE = 1 << 16


def pieces(seed, size):
    generator = random.Random(seed)
    while size:
        data = generator.randbytes(PIECE)[: min(PIECE, size)]
        size -= len(data)
        yield data


def expected_digest():
    digest = hashlib.sha256()
    for data in pieces(SEED, SIZE):
        digest.update(data)
    return digest.hexdigest()


def main():
    family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
    sock = socket.socket(family)
    if int(BUFFER):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(BUFFER))
    sock.settimeout(60)
    sock.connect((HOST, int(PORT)))
    sock.sendall(f"{MODE.removeprefix('half-closed-')} {SIZE} {SEED}\n".encode())
    if MODE.startswith("half-closed"):
        sock.shutdown(socket.SHUT_WR)
    digest = hashlib.sha256()
    to_receive = SIZE if MODE not in ("upload",) else 0
    source = pieces(SEED, SIZE) if MODE in ("upload", "both") else iter(())
    out = b""
    sent = received = 0
    tail = b""
    slow = bool(RATE)
    ready = False
    begin = time.monotonic()
    sock.setblocking(False)
    verdict = MODE in ("upload", "both")
    last = time.monotonic()
    while received < to_receive or sent < SIZE * verdict or (verdict and b"\n" not in tail):
        if time.monotonic() - last > 60:
            raise TimeoutError(f"nothing moved for 60 s: received {received}, sent {sent}")
        if not out:
            out = next(source, b"")
        behind = not slow or received + sent < RATE * (time.monotonic() - begin)
        inputs = [sys.stdin] if slow else []
        readable, writable, _ = select.select(
            inputs + [sock] * behind, [sock] * bool(out and behind), [], 0.002 if slow else 5
        )
        if sys.stdin in readable and sys.stdin.readline():
            slow = False
        if sock in writable:
            count = sock.send(out)
            sent, out, last = sent + count, out[count:], time.monotonic()
        if sock in readable:
            data = sock.recv(PIECE)
            if not data:
                raise ConnectionError("the server closed the connection")
            last = time.monotonic()
            body = data[: to_receive - received]
            digest.update(body)
            received += len(body)
            tail += data[len(body) :]
        if not ready and received + sent > min(SIZE, 1 << 18):
            ready = True
            print("ready", flush=True)
    wanted = expected_digest()
    ok = (not to_receive or digest.hexdigest() == wanted) and (
        not verdict or tail.decode().strip() == wanted
    )
    port = sock.getsockname()[1]
    return {"ok": ok, "received": received, "sent": sent, "detail": "", "port": port}


try:
    result = main()
except Exception as error:
    result = {"ok": False, "received": -1, "sent": -1, "detail": repr(error), "port": 0}
print(json.dumps(result), flush=True)
