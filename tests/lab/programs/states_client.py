"""The peer of states_server.py. Usage: states_client.py HOST PORT OWN_ADDRESS.

Brings its connections about, says "ready", waits for a line, and prints what came of them.
"""

import contextlib
import json
import socket
import sys


def main() -> None:
    host, port, own = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    def connect(mode: str) -> socket.socket:
        sock = socket.create_connection((host, port), timeout=30)
        sock.sendall(mode.encode() + b"\n")
        return sock

    # Nobody accepts here yet, and there is room for one: further SYNs are not answered.
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    listener = socket.create_server((own, 0), family=family, backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket(family)
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(listener.getsockname()[:2])
        fillers.append(filler)

    control = connect("keep")
    control.sendall(f"connect {own} {listener.getsockname()[1]}\n".encode())
    connecting = int(control.recv(100))
    linger = connect("linger")
    assert linger.recv(1) == b""
    linger.sendall(b"read me later")
    linger.close()
    urgent = connect("urgent")
    urgent.sendall(b"before")
    urgent.send(b"!", socket.MSG_OOB)
    urgent.sendall(b"behind")
    leave = connect("leave")
    left = leave.getsockname()[1]
    assert leave.recv(1) == b""
    leave.close()
    print(f"ready {left} {connecting}", flush=True)
    sys.stdin.readline()

    control.sendall(b"report\n")
    listener.settimeout(30)
    while True:
        served, name = listener.accept()
        if name[1] == connecting:
            break
        served.close()
    served.settimeout(30)
    first = served.recv(100).decode()
    served.sendall(b"welcome")
    report = json.loads(control.recv(10000))
    print(json.dumps({**report, "served": first}), flush=True)


main()
