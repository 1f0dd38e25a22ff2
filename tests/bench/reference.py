"""The reference: the same move done with CRIU alone, as well as a careful script does it.

One SSH connection to each host stays open and runs a shell, the images are on tmpfs, both hosts
are locked by hand, the images go through one pipe, and nothing waits that need not.
"""

from __future__ import annotations

import subprocess
import time

from tests.support.lab import SERVICE, SSH_CONFIG, Lab

IMAGES = "/run/lab-reference"
LOCK = (
    "add table inet reference; "
    "add chain inet reference in {{ type filter hook prerouting priority -300; }}; "
    "add chain inet reference out {{ type filter hook output priority -300; }}; "
    "add rule inet reference in ip daddr {address} tcp dport {port} drop; "
    "add rule inet reference out ip saddr {address} tcp sport {port} drop"
)


class Shell:
    """A shell on a host, over one SSH connection."""

    def __init__(self, host: str) -> None:
        self._process = subprocess.Popen(
            # bash reads its script byte by byte, and so leaves the data that follows
            ["ssh", "-F", str(SSH_CONFIG), host, "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.run("true")

    def run(self, command: str, data: bytes = b"") -> bytes:
        """Run a command; what it printed. `data` goes to its input, with its length ahead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        feed = f"head -c {len(data)} | " if data else ""
        script = (
            f"{feed}{{ {command}\n}} > /run/lab-out 2>/run/lab-err; "
            "echo $? $(wc -c < /run/lab-out); cat /run/lab-out\n"
        )
        self._process.stdin.write(script.encode() + data)
        self._process.stdin.flush()
        status, size = self._process.stdout.readline().split()
        output = self._process.stdout.read(int(size))
        if status != b"0":
            raise RuntimeError(f"{command}: status {status.decode()}")
        return output

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def migrate(source: Shell, destination: Shell, pid: int, device: str) -> float:
    """Move the Redis; the blackout in ms (lock to resume, one clock: the containers share it)."""
    blackout, _ = move(source, destination, pid, device, 6379)
    return blackout


def move(source: Shell, destination: Shell, pid: int, device: str, port: int) -> tuple[float, int]:
    """Move the server of a port; the blackout in ms, and the bytes of the images."""
    for shell in (source, destination):
        shell.run(f"rm -rf {IMAGES}; mkdir -m 700 {IMAGES}")
    lock = LOCK.format(address=SERVICE, port=port)
    destination.run(f"nft '{lock}'")
    begin = time.monotonic()
    images = source.run(
        f"nft '{lock}' && criu dump -t {pid} -D {IMAGES} --tcp-established --network-lock skip "
        f"--leave-stopped -v0 && ip addr del {SERVICE}/24 dev {device} && tar -C {IMAGES} -c ."
    )
    destination.run(
        f"tar -C {IMAGES} -x && ip addr add {SERVICE}/24 dev {device} && "
        f"nft delete table inet reference && "
        f"criu restore -D {IMAGES} --tcp-established --network-lock skip -d -v0",
        images,
    )
    blackout = (time.monotonic() - begin) * 1000
    destination.run(f"arping -U -c 1 -I {device} {SERVICE} || true; rm -rf {IMAGES}")
    source.run(f"kill -KILL {pid}; nft delete table inet reference; rm -rf {IMAGES}")
    return blackout, len(images)


def available(lab: Lab) -> bool:
    """Whether CRIU's own TCP path works here at all."""
    return "Looks good" in lab.run("src", "criu check 2>&1", check=False)
