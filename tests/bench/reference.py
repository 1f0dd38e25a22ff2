"""The reference: the same move done with CRIU alone, as well as a careful script does it.

Two SSH connections to each host are open beforehand, one with a shell and one for the images, which
go from tmpfs to tmpfs through one pipe; both hosts are locked by hand, and nothing waits that need
not.
"""

from __future__ import annotations

import subprocess
import time

from tests.support.lab import HOSTS, SERVICE, SSH_CONFIG

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
            ["ssh", "-F", str(SSH_CONFIG), host, "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.run("true")

    def run(self, command: str) -> bytes:
        """Run a command; what it printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        script = (
            f"{{ {command}\n}} > /run/lab-out 2>/run/lab-err; "
            "echo $? $(wc -c < /run/lab-out); cat /run/lab-out\n"
        )
        self._process.stdin.write(script.encode())
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


class Reference:
    """What is open before the blackout: a shell on each host, and a pipe for the images."""

    def __init__(self) -> None:
        self._source, self._destination = (Shell(host) for host in HOSTS)
        for shell in (self._source, self._destination):
            shell.run(f"rm -rf {IMAGES}*; mkdir -m 700 {IMAGES}")
        ssh = ["ssh", "-F", str(SSH_CONFIG)]
        # It waits for one byte, so that nothing is started in the blackout.
        pack = f"touch {IMAGES}.on; head -c 1 > {IMAGES}.go; exec tar -C {IMAGES} -c ."
        unpack = f"touch {IMAGES}.on; exec tar -C {IMAGES} -x"
        self._packing = subprocess.Popen(
            [*ssh, HOSTS[0], pack], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._packing.stdout is not None
        self._unpacking = subprocess.Popen([*ssh, HOSTS[1], unpack], stdin=self._packing.stdout)
        self._packing.stdout.close()  # it is the other one's now
        for shell in (self._source, self._destination):
            shell.run(f"until [ -e {IMAGES}.on ]; do sleep 0.01; done")

    def move(self, pid: int, device: str, port: int) -> tuple[float, int]:
        """Move the server of a port; the blackout in ms, and the bytes of the images.

        From lock to resume, by one clock: the containers share it.
        """
        lock = LOCK.format(address=SERVICE, port=port)
        self._destination.run(f"nft '{lock}'")
        begin = time.monotonic()
        self._source.run(
            f"nft '{lock}' && criu dump -t {pid} -D {IMAGES} --tcp-established --network-lock skip "
            f"--leave-stopped -v0 && ip addr del {SERVICE}/24 dev {device}"
        )
        self._carry()
        self._destination.run(
            f"ip addr add {SERVICE}/24 dev {device} && nft delete table inet reference && "
            f"criu restore -D {IMAGES} --tcp-established --network-lock skip -d -v0"
        )
        blackout = (time.monotonic() - begin) * 1000
        self._destination.run(f"arping -U -c 1 -I {device} {SERVICE} || true")
        size = int(self._source.run(f"du -sb {IMAGES} | cut -f1"))
        self._source.run(f"kill -KILL {pid}; nft delete table inet reference; rm -rf {IMAGES}*")
        self._destination.run(f"rm -rf {IMAGES}*")
        return blackout, size

    def _carry(self) -> None:
        assert self._packing.stdin is not None
        self._packing.stdin.write(b"!")
        self._packing.stdin.close()
        for process in (self._packing, self._unpacking):
            if process.wait():
                raise RuntimeError(f"{process.args}: status {process.returncode}")

    def close(self) -> None:
        for process in (self._packing, self._unpacking):
            if process.poll() is None:
                process.kill()
            process.wait()
        for shell in (self._source, self._destination):
            shell.close()

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
