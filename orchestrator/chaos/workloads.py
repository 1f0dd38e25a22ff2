"""What is moved in the lab, and the clients that count and check meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.chaos.errors import ActionFailed
from orchestrator.chaos.hosts import Hosts, until

PROGRAMS = Path(__file__).with_name("programs")
PORT = 6379
_CONNECTIONS, _PAUSE = 4, 0.001  # of those that count; seconds between requests
_BLOB, _RATE = 4 << 20, 2 << 20  # bytes of what is downloaded, and a second


class Client:
    """A program that runs on a host, with its stdin and stdout here."""

    def __init__(self, hosts: Hosts, host: str, program: Path, *arguments: object) -> None:
        self.name = program.name
        hosts.put(host, f"/run/{self.name}", program.read_text())
        command = ["docker", "exec", "-i", host, "python3", f"/run/{self.name}"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            status = self.process.poll()
            raise ActionFailed(detail=f"{self.name} ended without a word (status {status})")
        return line

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def report(self) -> dict[str, Any]:
        """Its result so far."""
        self.tell("report\n")
        return self._read()

    def finish(self) -> dict[str, Any]:
        """Close its stdin and take its result."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        result = self._read()
        self.process.wait(timeout=60)
        return result

    def _read(self) -> dict[str, Any]:
        result = json.loads(self.line())
        assert isinstance(result, dict)
        return result

    def end(self) -> None:
        """Whatever it does. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def start_redis(hosts: Hosts, host: str, address: str, client: str) -> int:
    """A Redis at its service address, which `host` has; its PID, once the client reaches it."""
    command = (
        f"redis-server --bind {address} --port {PORT} --save '' --appendonly no "
        "--protected-mode no --dir /tmp --daemonize no --enable-debug-command yes"
    )
    pid = hosts.start(host, command)
    ping = f"redis-cli -h {address} ping"
    until(lambda: hosts.run(client, ping, check=False) == "PONG", 10, "Redis answers")
    return pid


@dataclass
class Workload:
    """A Redis and its clients."""

    name: str
    address: str
    pid: int = 0
    clients: list[Client] = field(default_factory=list)

    def load(self, hosts: Hosts, client: str) -> None:
        """Have connections count, and one download a value of random bytes again and again."""
        for program, *arguments in (
            ("redis_counter.py", _CONNECTIONS, 1, _PAUSE), ("redis_download.py", _BLOB, _RATE),
        ):  # fmt: skip
            where = PROGRAMS / str(program)
            started = Client(hosts, client, where, self.address, PORT, *arguments)
            self.clients.append(started)
            started.line()
