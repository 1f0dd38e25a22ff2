"""SSH to a host, and an agent on the stdio of a session there. asyncssh's errors end here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from agent.errors import AgentError
from orchestrator.bootstrap import COMMAND, archive, explain_end
from orchestrator.errors import (
    HostKeyChanged,
    HostKeyRevoked,
    HostKeyUnknown,
    HostUnreachable,
    PermissionRefused,
    SshConfigInvalid,
)
from orchestrator.inventory import KnownHosts, Target, known_hosts_for, parse_target

CONNECT_TIMEOUT = 15.0
LOGIN_TIMEOUT = 30.0
KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 4
WINDOW = 16 << 20
READ_SIZE = 1 << 18
STDERR_KEPT = 8192
MAX_JUMPS = 8
END_TIMEOUT = 5.0


class _Client(asyncssh.SSHClient):
    """Remembers the key that the host showed; accepts none that is not known."""

    shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.shown = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return False


@dataclass
class _Attempt:
    """One connection attempt, with what is needed to explain its failure."""

    target: Target
    user: str
    known_hosts: KnownHosts
    client: _Client = field(default_factory=_Client)

    def explain(self, error: BaseException) -> AgentError:
        """The one place where asyncssh's errors become ours."""
        host = str(self.target)
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return self._explain_key(host, error.reason)
        if isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in error.reason.lower():
            return self._explain_key(host, "it offers none of the known types of key")
        if isinstance(error, asyncssh.PermissionDenied):
            return PermissionRefused(host=host, user=self.user, detail=error.reason)
        if isinstance(error, TimeoutError):
            return HostUnreachable(host=host, detail="no answer in time")
        if isinstance(error, asyncssh.ConnectionLost):
            return HostUnreachable(host=host, detail=f"the connection was lost ({error.reason})")
        if isinstance(error, asyncssh.Error):
            return HostUnreachable(host=host, detail=error.reason)
        if isinstance(error, OSError):
            return HostUnreachable(host=host, detail=_said(error))
        return SshConfigInvalid(host=host, detail=str(error) or type(error).__name__)

    def _explain_key(self, host: str, reason: str) -> AgentError:
        files = self.known_hosts.named_files
        address = self.known_hosts.address or self.target.host
        if "revoked" in reason:
            return HostKeyRevoked(host=host, address=address, files=files)
        shown = self.client.shown
        fingerprint = f"{shown.get_algorithm()} {shown.get_fingerprint()}" if shown else reason
        if self.known_hosts.matched:
            detail = f"it shows {fingerprint}" if shown else reason
            return HostKeyChanged(host=host, address=address, detail=detail, files=files)
        return HostKeyUnknown(host=host, address=address, fingerprint=fingerprint, files=files)


def _said(error: OSError) -> str:
    """asyncio's own words for a failed connect name the call, not what is wrong."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)


@dataclass
class Connection:
    """An authenticated SSH connection, with those it was made through."""

    target: Target
    ssh: asyncssh.SSHClientConnection
    through: list[asyncssh.SSHClientConnection]

    @property
    def addresses(self) -> list[str]:
        """The address and name at which the host's sshd was reached, most direct first."""
        found: list[str] = []
        peer = self.ssh.get_extra_info("peername") or ("",)
        for address in (str(peer[0]) if not self.through else "", self._configured_host()):
            if address and address not in found:
                found.append(address)
        return found

    def _configured_host(self) -> str:
        return str(self.ssh.get_extra_info("host") or self.target.host)

    async def close(self) -> None:
        for connection in (self.ssh, *reversed(self.through)):
            connection.close()
            with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), END_TIMEOUT)


async def connect(target: Target, config: list[str]) -> Connection:
    """Connect as the ssh configuration says, host keys verified, jump hosts included.

    Raises a `HostError`.
    """
    return await _connect(target, config, None, 0)


async def _connect(
    target: Target, config: list[str], tunnel: Connection | None, depth: int
) -> Connection:
    given: dict[str, Any] = {"host": target.host, "config": config}
    if target.port is not None:
        given["port"] = target.port
    if target.user is not None:
        given["username"] = target.user
    try:
        options = asyncssh.SSHClientConnectionOptions(**given)
    except Exception as error:  # a configuration may be wrong in many ways
        raise SshConfigInvalid(host=str(target), detail=str(error)) from error
    attempt = _Attempt(target, options.username, known_hosts_for(options, target))
    jumps = [] if tunnel else _jumps(target, options.tunnel, depth)
    for jump in jumps:
        tunnel = await _connect(jump, config, tunnel, depth + 1)
    if tunnel is not None:
        given["proxy_command"] = None
    try:
        ssh = await asyncssh.connect(
            **given,
            tunnel=tunnel.ssh if tunnel else None,
            known_hosts=attempt.known_hosts,
            client_factory=lambda: attempt.client,
            connect_timeout=options.connect_timeout or CONNECT_TIMEOUT,
            login_timeout=LOGIN_TIMEOUT,
            keepalive_interval=options.keepalive_interval or KEEPALIVE_INTERVAL,
            keepalive_count_max=KEEPALIVE_COUNT,
            agent_forwarding=False,
            x11_forwarding=False,
        )
    except asyncio.CancelledError:
        if tunnel is not None:
            await tunnel.close()
        raise
    except Exception as error:
        if tunnel is not None:
            await tunnel.close()
        raise attempt.explain(error) from error
    through = [*tunnel.through, tunnel.ssh] if tunnel else []
    return Connection(target, ssh, through)


def _jumps(target: Target, configured: object, depth: int) -> list[Target]:
    """The hosts of `ProxyJump`, each of which is verified like any other."""
    if not isinstance(configured, str) or configured.lower() == "none":
        return []
    if depth >= MAX_JUMPS:
        raise SshConfigInvalid(host=str(target), detail="ProxyJump leads in a circle")
    try:
        return [parse_target(hop.removeprefix("ssh://")) for hop in configured.split(",")]
    except AgentError as error:
        raise SshConfigInvalid(host=str(target), detail=f"ProxyJump {error}") from error


class SshChannel:
    """The stdio of an agent on a host: bytes both ways, and why it ended."""

    def __init__(
        self,
        connection: Connection,
        process: asyncssh.SSHClientProcess[bytes],
        stderr_line: Callable[[str], None] | None,
    ) -> None:
        self.host = str(connection.target)
        self.addresses = connection.addresses
        self._connection = connection
        self._process = process
        self._stderr = bytearray()
        self._stderr_line = stderr_line
        self._stderr_task = asyncio.create_task(self._read_stderr())

    async def chunks(self) -> AsyncIterator[bytes]:
        """What arrives, until the end or the loss of the connection."""
        while True:
            try:
                data = await self._process.stdout.read(READ_SIZE)
            except (asyncssh.Error, OSError):
                return
            if not data:
                return
            yield data

    def write(self, data: bytes) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            self._process.stdin.write(data)

    async def drain(self) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            await self._process.stdin.drain()

    async def why_ended(self) -> AgentError:
        """The reason for an end that was not asked for."""
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            await asyncio.wait_for(self._process.wait_closed(), END_TIMEOUT)
            await asyncio.wait_for(asyncio.shield(self._stderr_task), END_TIMEOUT)
        text = self._stderr.decode("utf-8", "replace")
        status = self._process.exit_status
        if status is None and self._connection.ssh.is_closed():
            return HostUnreachable(host=self.host, detail="the connection was lost")
        return explain_end(self.host, status, text)

    def abort(self) -> None:
        """Break the connection off."""
        self._connection.ssh.abort()

    async def close(self, patience: float) -> None:
        """End the agent's input, give it `patience` seconds to settle, then disconnect."""
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            self._process.stdin.write_eof()
            await asyncio.wait_for(self._process.wait_closed(), patience)
        self._stderr_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._stderr_task
        await self._connection.close()

    async def _read_stderr(self) -> None:
        with contextlib.suppress(asyncssh.Error, OSError, ValueError):
            async for line in self._process.stderr:
                if not line:
                    continue
                self._stderr += line
                del self._stderr[:-STDERR_KEPT]
                if self._stderr_line is not None:
                    self._stderr_line(line.decode("utf-8", "replace").rstrip())


async def open_agent(
    target: Target, config: list[str], stderr_line: Callable[[str], None] | None = None
) -> SshChannel:
    """Connect to a host and start the agent there; its hello is still to be read.

    Raises a `HostError`.
    """
    connection = await connect(target, config)
    try:
        process: asyncssh.SSHClientProcess[bytes] = await connection.ssh.create_process(
            COMMAND, encoding=None, request_pty=False, env={}, send_env=[], window=WINDOW
        )
    except (asyncssh.Error, OSError) as error:
        await connection.close()
        detail = f"no session: {getattr(error, 'reason', error)}"
        raise HostUnreachable(host=str(target), detail=detail) from error
    except asyncio.CancelledError:
        await connection.close()
        raise
    channel = SshChannel(connection, process, stderr_line)
    channel.write(archive())
    return channel
