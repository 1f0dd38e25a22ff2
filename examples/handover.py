"""A server that hands its open connections to another host, and goes on there, without CRIU.

It answers each line with how many it has had on that connection. As root, with the package
installed on both hosts, which are on one link, and a service address that neither needs itself:

    second# python examples/handover.py take  192.0.2.9/24 eth0 7000 --control 10.0.0.2:7001
    first#  python examples/handover.py serve 192.0.2.9/24 eth0 7000 --control 10.0.0.2:7001
    first#  kill -USR1 PID    # now the second one has the address and the connections

The control connection is plain TCP, for a link that you trust; else let it go through SSH.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import signal
import socket
import struct
import subprocess
from dataclasses import dataclass
from typing import Any

from agent.errors import AgentError
from agent.tcp import Stream, abandon, dump, release, restore

LENGTH = struct.Struct("!I")
MAX_MESSAGE = 64 << 20


@dataclass
class Service:
    """Where the service is: its address with the prefix length, its device, its port."""

    address: str
    device: str
    port: int

    @property
    def host(self) -> str:
        return self.address.partition("/")[0]

    def lock(self) -> None:
        """From here on no packet of the service reaches this host's TCP or leaves it."""
        ip = "ip6" if ":" in self.host else "ip"
        nft(
            "table inet handover {"
            " chain in { type filter hook prerouting priority -300;"
            f" {ip} daddr {self.host} tcp dport {self.port} drop; }}\n"
            " chain out { type filter hook output priority -300;"
            f" {ip} saddr {self.host} tcp sport {self.port} drop; }}\n"
            "}"
        )

    def unlock(self) -> None:
        nft("delete table inet handover")

    def take_address(self) -> None:
        nodad = ["nodad"] if ":" in self.host else []
        run("ip", "address", "replace", self.address, "dev", self.device, *nodad)
        if not nodad:
            self._announce()

    def drop_address(self) -> None:
        run("ip", "address", "delete", self.address, "dev", self.device)

    def _announce(self) -> None:
        """An ARP announcement (RFC 5227): the neighbours send to this host from now on."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
            packets.bind((self.device, 0))
            mac, ip = packets.getsockname()[4], socket.inet_aton(self.host)
            head = b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
            packets.send(head + mac + ip + bytes(6) + ip)


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Server:
    """Counts the lines of each connection, until it is told to hand over."""

    def __init__(self, listener: socket.socket, counts: dict[socket.socket, int]) -> None:
        self.listener, self.counts = listener, counts
        self._selector = selectors.DefaultSelector()
        for sock in (listener, *counts):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def accept_waiting(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                self.counts[sock] = 0
                self._selector.register(sock, selectors.EVENT_READ)

    def serve(self, wakeup: socket.socket) -> None:
        """Until there is something to read from `wakeup`."""
        if wakeup not in self._selector.get_map():
            self._selector.register(wakeup, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                if sock is wakeup:
                    wakeup.recv(100)
                    return
                if sock is self.listener:
                    self.accept_waiting()
                elif isinstance(sock, socket.socket):
                    self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
            for _ in range(data.count(b"\n")):
                self.counts[sock] += 1
                sock.send(b"%d\n" % self.counts[sock])
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(sock)
            del self.counts[sock]
            sock.close()


def send(control: socket.socket, head: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(head).encode()
    control.sendall(LENGTH.pack(len(text)) + LENGTH.pack(len(body)) + text + body)


def receive(control: socket.socket) -> tuple[dict[str, Any], bytes]:
    sizes = [LENGTH.unpack(_exactly(control, LENGTH.size))[0] for _ in range(2)]
    if sum(sizes) > MAX_MESSAGE:
        raise ConnectionError("a message is too long")
    head, body = (_exactly(control, size) for size in sizes)
    return json.loads(head), body


def _exactly(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := control.recv(size - len(data))):
            raise ConnectionError("the other host has gone")
        data += part
    return bytes(data)


def hand_over(service: Service, server: Server, control: socket.socket) -> None:
    """Give all to the other host. Whatever fails before it is ready, all goes on here."""
    dumped: list[socket.socket] = []
    send(control, {"do": "lock"})
    receive(control)
    service.lock()
    try:
        server.accept_waiting()
        for sock, count in (*server.counts.items(), (server.listener, None)):
            stream = dump(sock)
            dumped.append(sock)
            send(control, {"do": "restore", "count": count}, stream.to_bytes())
        send(control, {"do": "end"})
        receive(control)  # it has restored them all
    except BaseException:
        service.unlock()
        for sock in dumped:
            release(sock)
        raise
    service.drop_address()
    for sock in dumped:
        abandon(sock)  # without a word to the peer
    send(control, {"do": "take"})
    receive(control)
    service.unlock()


def take_over(service: Service, control: socket.socket) -> Server:
    """The other side of `hand_over`. Raises `ConnectionError` where nothing came of it."""
    counts: dict[socket.socket, int] = {}
    listener = None
    receive(control)
    service.lock()
    try:
        send(control, {"did": "lock"})
        while (message := receive(control))[0]["do"] == "restore":
            sock = restore(Stream.from_bytes(message[1]))  # in repair mode: silent
            if message[0]["count"] is None:
                listener = sock
            else:
                counts[sock] = message[0]["count"]
        send(control, {"did": "restore"})
        receive(control)
        assert listener is not None
    except BaseException:
        for sock in (*counts, *filter(None, [listener])):
            abandon(sock)
        service.unlock()
        raise
    service.take_address()
    service.unlock()
    for sock in (listener, *counts):
        release(sock)  # the peer is woken
    send(control, {"did": "take"})
    return Server(listener, counts)


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "take"])
    parser.add_argument("address", help="of the service, with its prefix length")
    parser.add_argument("device")
    parser.add_argument("port", type=int)
    parser.add_argument("--control", type=address_of, required=True, help="HOST:PORT of `take`")
    asked = parser.parse_args()
    service = Service(asked.address, asked.device, asked.port)
    if asked.role == "take":
        with socket.create_server(asked.control) as waiting:
            print("ready", flush=True)
            control, _ = waiting.accept()
        with control:
            server = take_over(service, control)
    else:
        service.take_address()
        family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
        server = Server(socket.create_server((service.host, service.port), family=family), {})
    woken, ours = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    signal.signal(signal.SIGUSR1, lambda *_: None)
    print("serving", len(server.counts), "connections", flush=True)
    while True:
        server.serve(woken)
        try:
            with socket.create_connection(asked.control) as control:
                hand_over(service, server, control)
        except (OSError, AgentError) as error:
            print("not handed over:", error, flush=True)
        else:
            print("handed over", flush=True)
            return


if __name__ == "__main__":
    main()
