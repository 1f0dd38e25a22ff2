"""Reaching a host: its key is always verified, and each failure is told in words with a fix."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from agent.errors import EXIT_REFUSED, AgentError
from orchestrator import transport
from orchestrator.inventory import parse_target
from orchestrator.transport import connect
from tests.support.loopback_ssh import LoopbackHost, loopback_host


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LoopbackHost]:
    async with loopback_host(tmp_path) as one:
        yield one


async def refused(host: LoopbackHost, code: str, target: str = "src") -> AgentError:
    """The error of an attempt; known_hosts is as it was and nothing was started."""
    before = host.known_hosts.read_bytes() if host.known_hosts.exists() else None
    with pytest.raises(AgentError) as raised:
        connection = await connect(parse_target(target), [str(host.config)])
        await connection.close()
    error = raised.value
    assert error.code == code, error
    assert error.exit_status == EXIT_REFUSED
    assert target in error.message and error.hint
    assert (host.known_hosts.read_bytes() if host.known_hosts.exists() else None) == before
    assert host.processes == []
    return error


def with_keys(host: LoopbackHost, *extra: str) -> None:
    """Configure the host, with known_hosts and more."""
    host.configure(f"UserKnownHostsFile {host.known_hosts}", "GlobalKnownHostsFile none", *extra)


async def test_a_known_key(host: LoopbackHost) -> None:
    connection = await connect(parse_target("src"), [str(host.config)])
    assert connection.addresses == ["127.0.0.1"]
    await connection.close()


async def test_an_unknown_key(host: LoopbackHost) -> None:
    host.known_hosts.write_text("")
    error = await refused(host, "host-key-unknown")
    assert host.host_key.get_fingerprint() in error.message
    assert str(host.known_hosts) in error.hint


async def test_known_hosts_that_is_not_there(host: LoopbackHost) -> None:
    host.known_hosts.unlink()
    await refused(host, "host-key-unknown")


async def test_a_key_that_is_known_for_another_name(host: LoopbackHost) -> None:
    host.trust(name="elsewhere")
    await refused(host, "host-key-unknown")


@pytest.mark.parametrize(
    "settings",
    [
        ["StrictHostKeyChecking no"],
        ["StrictHostKeyChecking accept-new"],
        ["UserKnownHostsFile none", "StrictHostKeyChecking no"],
        ["UserKnownHostsFile /dev/null"],
    ],
)
async def test_no_setting_makes_an_unknown_key_acceptable(
    host: LoopbackHost, settings: list[str]
) -> None:
    host.known_hosts.write_text("")
    host.configure(*settings, "GlobalKnownHostsFile none")
    await refused(host, "host-key-unknown")


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
async def test_a_changed_key(host: LoopbackHost, kind: str) -> None:
    """Also where the known one is of a type that the host does not offer at all."""
    host.trust(asyncssh.generate_private_key(kind))
    error = await refused(host, "host-key-changed")
    assert "127.0.0.1" in error.message and str(host.known_hosts) in error.hint


async def test_a_revoked_key(host: LoopbackHost) -> None:
    public = host.host_key.export_public_key().decode().strip()
    with host.known_hosts.open("a") as file:
        file.write(f"@revoked * {public}\n")
    await refused(host, "host-key-revoked")


async def test_a_key_that_is_known_under_an_alias(host: LoopbackHost) -> None:
    host.trust(name="fleet")
    with_keys(host, "HostKeyAlias fleet")
    connection = await connect(parse_target("src"), [str(host.config)])
    await connection.close()


async def test_a_key_in_the_users_second_file(host: LoopbackHost) -> None:
    second = host.directory / "known_hosts2"
    host.known_hosts.rename(second)
    host.configure(f"UserKnownHostsFile {host.known_hosts} {second}", "GlobalKnownHostsFile none")
    connection = await connect(parse_target("src"), [str(host.config)])
    await connection.close()


# --- no way to the host


async def test_nobody_listens(host: LoopbackHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    error = await refused(host, "unreachable", f"src:{free}")
    assert "refused" in error.message


async def test_a_name_that_does_not_exist(host: LoopbackHost) -> None:
    await refused(host, "unreachable", "no-such-host.invalid")


async def test_a_host_that_stays_silent(
    host: LoopbackHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(transport, "LOGIN_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await refused(host, "unreachable", f"src:{silent.getsockname()[1]}")
    assert error.hint


async def test_what_listens_is_no_sshd(host: LoopbackHost) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n" * 2000)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        await refused(host, "unreachable", f"src:{server.sockets[0].getsockname()[1]}")


async def test_a_connection_that_is_cut_while_it_is_made(host: LoopbackHost) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-cut\r\n")
        await reader.readline()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        await refused(host, "unreachable", f"src:{server.sockets[0].getsockname()[1]}")


async def test_a_login_that_is_refused(host: LoopbackHost) -> None:
    key = host.directory / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(key))
    key.chmod(0o600)
    host.configure(
        f"UserKnownHostsFile {host.known_hosts}", "GlobalKnownHostsFile none", identity=key
    )
    error = await refused(host, "permission-denied")
    assert "tester" in error.message


# --- the configuration


@pytest.mark.parametrize(
    "line", ["Port many", "NoSuchKeyword x y", "UserKnownHostsFile /x/%q", "ProxyJump src"]
)
async def test_a_configuration_that_cannot_be_used(host: LoopbackHost, line: str) -> None:
    """The first line of a keyword counts, so this one stands before the rest."""
    host.config.write_text(f"Host src\n  {line}\n" + host.config.read_text())
    if line.startswith("NoSuch"):  # as asyncssh has it: passed over
        connection = await connect(parse_target("src"), [str(host.config)])
        await connection.close()
    else:
        await refused(host, "ssh-config")


async def test_a_configuration_file_that_is_not_there(host: LoopbackHost) -> None:
    with pytest.raises(AgentError) as raised:
        await connect(parse_target("src"), [str(host.directory / "absent")])
    assert raised.value.code == "ssh-config"
    assert "absent" in raised.value.message


async def test_through_a_jump_host_whose_key_is_verified_too(
    host: LoopbackHost, tmp_path: Path
) -> None:
    async with loopback_host(tmp_path / "jump") as jump:
        jumping = (
            f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  User tester\n"
            f"  IdentityFile {jump.directory / 'id'}\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {jump.known_hosts}\n  GlobalKnownHostsFile none\n"
            "Host src\n  ProxyJump jump\n"
        )
        host.config.write_text(jumping + host.config.read_text())
        connection = await connect(parse_target("src"), [str(host.config)])
        assert len(connection.through) == 1
        assert connection.addresses == ["127.0.0.1"]
        await connection.close()

        jump.known_hosts.write_text("")
        with pytest.raises(AgentError) as raised:
            await connect(parse_target("src"), [str(host.config)])
        assert raised.value.code == "host-key-unknown"
        assert raised.value.fields["host"] == "jump"

        jump.trust()
        host.known_hosts.write_text("")
        await refused(host, "host-key-unknown")
