"""Hosts as the user names them, and what is known of their keys."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import EXIT_USAGE
from orchestrator import inventory
from orchestrator.errors import SshConfigInvalid, UsageProblem
from orchestrator.inventory import (
    KnownHosts,
    Target,
    config_files,
    known_hosts_for,
    parse_target,
    read_known_hosts,
)

KEY = asyncssh.generate_private_key("ssh-ed25519")
OTHER = asyncssh.generate_private_key("ssh-ed25519")


def entry(names: str, key: asyncssh.SSHKey = KEY, mark: str = "") -> str:
    public = key.export_public_key().decode().strip()
    return f"{mark + ' ' if mark else ''}{names} {public}\n"


# --- names


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("src", Target("src")),
        ("src.example.com", Target("src.example.com")),
        ("10.77.0.11", Target("10.77.0.11")),
        ("src:2222", Target("src", None, 2222)),
        ("root@src", Target("src", "root")),
        ("root@src:22", Target("src", "root", 22)),
        ("a.b-c_d@src", Target("src", "a.b-c_d")),
        ("[fd77::11]", Target("fd77::11")),
        ("[fd77::11]:2222", Target("fd77::11", None, 2222)),
        ("root@[fd77::11]:2222", Target("fd77::11", "root", 2222)),
        ("_host_", Target("_host_")),
    ],
)
def test_names_of_hosts(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "host name"),
        ("@src", "user name"),
        ("ro ot@src", "user name"),
        ("-oProxyCommand=x@src", "user name"),
        ("a:b@src", "user name"),
        ("-oProxyCommand=x", "host name"),
        ("src-", "host name"),
        ("src/x", "host name"),
        ("s rc", "host name"),
        ("src\n", "host name"),
        ("user@", "host name"),
        ("src:", "port"),
        ("src:0", "port"),
        ("src:65536", "port"),
        ("src:-1", "port"),
        ("src:ssh", "port"),
        ("src:٢٢", "port"),
        ("fd77::11", "brackets"),
        ("fd77::11:22", "brackets"),
        ("[fd77::11", "ADDRESS"),
        ("[fd77::11]22", "ADDRESS"),
        ("[fd77::11]:", "port"),
        ("[src]", "not an IPv6 address"),
        ("[10.77.0.11]:22", "not an IPv6 address"),
    ],
)
def test_what_is_no_name_of_a_host(text: str, said: str) -> None:
    with pytest.raises(UsageProblem, match=said) as raised:
        parse_target(text)
    assert raised.value.exit_status == EXIT_USAGE


@given(st.text(max_size=30))
def test_any_text_is_a_target_or_a_usage_problem(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageProblem:
        return
    assert not target.host.startswith("-") and not (target.user or "").startswith("-")
    assert parse_target(str(target)) == target


# --- configuration files


def test_the_file_that_is_given_is_the_only_one() -> None:
    assert config_files("lab/ssh_config") == ["lab/ssh_config"]
    assert config_files("none") == []


def test_the_users_file_comes_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    monkeypatch.setattr(inventory, "USER_CONFIG", str(user))
    monkeypatch.setattr(inventory, "SYSTEM_CONFIG", str(system))
    assert config_files(None) == []
    system.write_text("")
    assert config_files(None) == [str(system)]
    user.write_text("")
    assert config_files(None) == [str(user), str(system)]


# --- known_hosts


def known(tmp_path: Path, text: str, alias: str | None = None) -> KnownHosts:
    (tmp_path / "known_hosts").write_text(text)
    return KnownHosts([str(tmp_path / "known_hosts")], alias)


@pytest.mark.parametrize(
    ("names", "host", "port", "found"),
    [
        ("src", "src", 22, True),
        ("src,dst", "dst", 22, True),
        ("src", "SRC", 22, True),
        ("*.example.com", "src.example.com", 22, True),
        ("*.example.com,!src.example.com", "src.example.com", 22, False),
        ("[src]:2222", "src", 2222, True),
        ("[src]:2222", "src", 22, False),
        ("dst", "src", 22, False),
        ("10.77.0.11", "src", 22, False),  # the name counts, not the address behind it
    ],
)
def test_a_key_is_found_by_the_name(
    tmp_path: Path, names: str, host: str, port: int, found: bool
) -> None:
    hosts = known(tmp_path, entry(names))
    keys, authorities, revoked = hosts(host, "10.77.0.11", port)
    assert [key.public_data for key in keys] == ([KEY.public_data] if found else [])
    assert not authorities and not revoked
    assert hosts.matched is found
    assert hosts.address == "10.77.0.11"


def test_an_alias_takes_the_place_of_name_and_port(tmp_path: Path) -> None:
    hosts = known(tmp_path, entry("fleet") + entry("src", OTHER), alias="fleet")
    keys, _, _ = hosts("src", "10.77.0.11", 2222)
    assert [key.public_data for key in keys] == [KEY.public_data]


def test_authorities_and_revoked_keys_are_told_apart(tmp_path: Path) -> None:
    hosts = known(tmp_path, entry("src", KEY, "@cert-authority") + entry("src", OTHER, "@revoked"))
    keys, authorities, revoked = hosts("src", "", 22)
    assert not keys
    assert [key.public_data for key in authorities] == [KEY.public_data]
    assert [key.public_data for key in revoked] == [OTHER.public_data]
    assert hosts.matched and hosts.revoked


def test_hashed_names(tmp_path: Path) -> None:
    """As `ssh-keygen -H` writes them; the salt and digest are of "src" (HMAC-SHA1)."""
    import base64
    import hashlib
    import hmac

    salt = bytes(20)
    digest = hmac.new(salt, b"src", hashlib.sha1).digest()
    name = "|1|" + base64.b64encode(salt).decode() + "|" + base64.b64encode(digest).decode()
    hosts = known(tmp_path, entry(name))
    assert hosts("src", "", 22)[0] and not hosts("dst", "", 22)[0]


def test_lines_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    text = "# a comment\n\nsrc ssh-ed25519\nsrc nonsense AAAA\n@odd src x y\n\xff\n" + entry("src")
    hosts = known(tmp_path, text)
    assert [key.public_data for key in hosts("src", "", 22)[0]] == [KEY.public_data]


def test_a_file_that_is_not_there_knows_no_host(tmp_path: Path) -> None:
    database = read_known_hosts([str(tmp_path / "absent"), "/dev/null", str(tmp_path)])
    assert not any(database.match("src", "", 22))


# --- what the ssh configuration says about them


def options_of(tmp_path: Path, text: str) -> asyncssh.SSHClientConnectionOptions:
    (tmp_path / "config").write_text(text)
    return asyncssh.SSHClientConnectionOptions(host="src", config=[str(tmp_path / "config")])


def test_the_usual_files(tmp_path: Path) -> None:
    hosts = known_hosts_for(options_of(tmp_path, ""), parse_target("src"))
    home = Path.home()
    assert hosts.files == [
        str(home / ".ssh/known_hosts"), str(home / ".ssh/known_hosts2"),
        "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2",
    ]  # fmt: skip
    assert hosts.named_files == str(home / ".ssh/known_hosts")


def test_files_of_the_configuration_with_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    config = (
        "Host src\n HostName 10.77.0.11\n Port 2222\n User tester\n HostKeyAlias fleet\n"
        " UserKnownHostsFile ${KEYS}/%h-%p-%r %d/%n-%k-%i %%\n GlobalKnownHostsFile /etc/%L\n"
    )
    hosts = known_hosts_for(options_of(tmp_path, config), parse_target("src"))
    assert hosts.files == [
        "/keys/10.77.0.11-2222-tester",
        f"{Path.home()}/src-fleet-{os.getuid()}",
        "%",
        f"/etc/{socket.gethostname().partition('.')[0]}",
    ]
    assert hosts.alias == "fleet"


def test_without_a_file_there_is_no_key_and_none_is_accepted(tmp_path: Path) -> None:
    """asyncssh itself would accept any key here."""
    config = "UserKnownHostsFile none\nGlobalKnownHostsFile none\nStrictHostKeyChecking no\n"
    hosts = known_hosts_for(options_of(tmp_path, config), parse_target("src"))
    assert not any(hosts("src", "", 22)) and not hosts.matched


@pytest.mark.parametrize("path", ["/keys/%q", "${NO_SUCH_VARIABLE_HERE}/keys"])
def test_a_token_that_is_not_known(tmp_path: Path, path: str) -> None:
    options = options_of(tmp_path, f"UserKnownHostsFile {path}\n")
    with pytest.raises(SshConfigInvalid, match="is not known"):
        known_hosts_for(options, parse_target("src"))
