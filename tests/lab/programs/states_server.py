"""A server with connections in rare states. Usage: states_server.py HOST PORT.

A client's first line says what becomes of its connection:
keep        commands come over it: "connect HOST PORT" begins a connection to there, "report"
            answers in one line of JSON with what the others have come to
linger      both sides close it, and what the client sent is read only for the report
urgent      it is read only for the report: up to the mark, the urgent byte, and behind it
leave       the server closes it at once, so that TIME_WAIT is the server's
"""

import json
import selectors
import socket
import sys


def read(sock: socket.socket) -> str:
    data = bytearray()
    while piece := sock.recv(1 << 16):
        data += piece
    return data.decode()


def outcome(function, *arguments) -> object:
    try:
        return function(*arguments)
    except OSError as error:
        return type(error).__name__


def urgent(sock: socket.socket) -> list[str]:
    sock.settimeout(None)
    before = sock.recv(1 << 16).decode()
    return [before, sock.recv(1, socket.MSG_OOB).decode(), sock.recv(1 << 16).decode()]


def opened(sock: socket.socket) -> str:
    sock.settimeout(30)
    sock.sendall(b"opened\n")
    return sock.recv(100).decode()


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    held: dict[str, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                line = b""
                while not line.endswith(b"\n"):
                    line += sock.recv(1)
                mode = line.decode().strip()
                held[mode] = sock
                if mode == "keep":
                    selector.register(sock, selectors.EVENT_READ)
                elif mode == "leave":
                    sock.close()
                elif mode == "linger":
                    sock.shutdown(socket.SHUT_WR)
                continue
            control = key.fileobj
            words = control.recv(1000).decode().split()
            if not words:
                return
            if words[0] == "connect":
                sock = socket.socket(listener.family)
                sock.setblocking(False)
                sock.bind((host, 0))
                try:
                    sock.connect((words[1], int(words[2])))
                except BlockingIOError:
                    pass
                held["connect"] = sock
                control.sendall(b"%d\n" % sock.getsockname()[1])
            else:
                report = {
                    "linger": outcome(read, held["linger"]),
                    "urgent": outcome(urgent, held["urgent"]),
                    "connect": outcome(opened, held["connect"]),
                }
                control.sendall(json.dumps(report).encode() + b"\n")


main()
