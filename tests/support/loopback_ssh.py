"""An SSH host on the loopback: asyncssh's server, which runs each command with /bin/sh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh


@dataclass
class LoopbackHost:
    """What a test needs of the host: its port and keys, and a configuration that reaches it."""

    port: int
    host_key: asyncssh.SSHKey
    directory: Path
    environment: dict[str, str]
    shell_prefix: str = ""
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    server: asyncssh.SSHAcceptor | None = None

    @property
    def config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def trust(self, key: asyncssh.SSHKey | None = None, name: str | None = None) -> None:
        """Write known_hosts with one entry for this host."""
        public = (key or self.host_key).export_public_key().decode().strip()
        self.known_hosts.write_text(f"{name or f'[127.0.0.1]:{self.port}'} {public}\n")

    def configure(self, *extra: str, identity: Path | None = None) -> None:
        """Write ssh_config with the names `src` and `dst` for this host."""
        lines = [
            "Host src dst",
            "  HostName 127.0.0.1",
            f"  Port {self.port}",
            "  User tester",
            f"  IdentityFile {identity or self.directory / 'id'}",
            "  IdentityAgent none",
            *(f"  {line}" for line in extra),
        ]
        self.config.write_text("\n".join(lines) + "\n")


class _Server(asyncssh.SSHServer):
    """Lets nobody in without a key; as a jump host it leads anywhere."""

    def connection_requested(self, *_: object) -> bool:
        return True

    def begin_auth(self, username: str) -> bool:
        return True


async def _pump_in(process: asyncssh.SSHServerProcess[bytes], target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await process.stdin.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


async def _pump_out(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()


@asynccontextmanager
async def loopback_host(directory: Path) -> AsyncIterator[LoopbackHost]:
    """A host that lets in the key `directory/id`; trusted and configured, see `configure`."""
    directory.mkdir(parents=True, exist_ok=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key.write_private_key(str(directory / "id"))
    (directory / "id").chmod(0o600)
    user_key.write_public_key(str(directory / "authorized_keys"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    host = LoopbackHost(0, host_key, directory, {"PATH": path, "HOME": "/"})

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            host.shell_prefix + (process.command or ""),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=host.environment,
            start_new_session=True,
        )
        host.processes.append(child)
        assert child.stdin and child.stdout and child.stderr
        inward = asyncio.create_task(_pump_in(process, child.stdin))
        try:
            await asyncio.gather(
                _pump_out(child.stdout, process.stdout), _pump_out(child.stderr, process.stderr)
            )
            status = await child.wait()
            process.exit(status if status >= 0 else 128 - status)
        except OSError:
            pass  # the client is gone
        finally:
            inward.cancel()
            await asyncio.gather(inward, return_exceptions=True)
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=_Server,
        server_host_keys=[host_key],
        authorized_client_keys=str(directory / "authorized_keys"),
        process_factory=run,
        encoding=None,
    )
    host.server = server
    host.port = server.get_port()
    host.trust()
    host.configure(f"UserKnownHostsFile {host.known_hosts}", "GlobalKnownHostsFile none")
    try:
        yield host
    finally:
        server.close()
        await server.wait_closed()
