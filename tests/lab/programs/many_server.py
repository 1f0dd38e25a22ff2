"""An echo server for very many connections: one thread, epoll, level-triggered.

Usage: many_server.py HOST PORT
"""

import select
import socket
import sys

PIECE = 1 << 16


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    left: dict[int, bytes] = {}  # what there was no room to send for
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                while True:
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        break
                    sock.setblocking(False)
                    sockets[sock.fileno()] = sock
                    poll.register(sock, select.EPOLLIN)
                continue
            sock = sockets[fd]
            try:
                data = left.pop(fd, b"") or sock.recv(PIECE)
                rest = data[sock.send(data) :] if data else b""
            except BlockingIOError:
                continue
            except OSError:
                data = rest = b""
            if rest:
                left[fd] = rest
            if data:
                poll.modify(sock, select.EPOLLOUT if rest else select.EPOLLIN)
            else:
                del sockets[fd]
                sock.close()


main()
