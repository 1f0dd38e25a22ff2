"""Hosts as the user names them, and what the ssh configuration says about their keys.

Host keys are always verified. asyncssh itself knows no `StrictHostKeyChecking`, but turns
verification off for `UserKnownHostsFile none`, and reads only the user's first file; so
known_hosts is read here, as ssh does: an absent or unreadable file knows no host.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import SshConfigInvalid, UsageProblem

if TYPE_CHECKING:
    import asyncssh

USER_CONFIG = "~/.ssh/config"
SYSTEM_CONFIG = "/etc/ssh/ssh_config"
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")

_HOST = re.compile(r"[A-Za-z0-9_.](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_USER = re.compile(r"[^\s@:/-][^\s@:/]*")
_TOKEN = re.compile(r"%(.)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Target:
    """One host as named by the user; `user` and `port` are None where not given."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse_target(text: str) -> Target:
    """Read `[user@]host[:port]`, IPv6 addresses in brackets. Raises `UsageProblem`."""
    user, at, rest = text.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise UsageProblem(detail=f"{text!r}: {user!r} is not a user name")
    port: str | None = None
    if rest.startswith("["):
        host, closed, tail = rest[1:].partition("]")
        if not closed or (tail and not tail.startswith(":")):
            raise UsageProblem(detail=f"{text!r}: write an IPv6 host as [ADDRESS]:PORT")
        port = tail[1:] if tail else None
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageProblem(detail=f"{text!r}: {host!r} is not an IPv6 address") from None
    elif rest.count(":") > 1:
        raise UsageProblem(detail=f"{text!r}: put an IPv6 address in brackets: [{rest}]")
    else:
        host, colon, tail = rest.partition(":")
        port = tail if colon else None
        if not _HOST.fullmatch(host):
            shown = f"{text!r}: {host!r}" if host != text else f"{text!r}"
            why = ": it begins with a dash, as an option does" if host.startswith("-") else ""
            raise UsageProblem(detail=f"{shown} is not a host name{why}")
    return Target(host, user or None, None if port is None else _port(text, port))


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise UsageProblem(detail=f"{text!r}: {port!r} is not a port")
    return int(port)


def config_files(given: str | None) -> list[str]:
    """The ssh configuration files to read: the one given with -F alone (`none`: no file),
    or the user's and then the system's, where they exist."""
    if given is not None:
        return [] if given == "none" else [given]
    found = [Path(USER_CONFIG).expanduser(), Path(SYSTEM_CONFIG)]
    return [str(path) for path in found if os.access(path, os.R_OK)]


@dataclass
class KnownHosts:
    """The keys known for one host, given to asyncssh as its `known_hosts` callable.

    `address`, `matched` and `revoked` tell afterwards what was found, to tell an unknown key from a
    changed one.
    """

    files: list[str]
    alias: str | None = None
    address: str = ""
    matched: bool = False
    revoked: list[asyncssh.SSHKey] = field(default_factory=list)

    def __call__(self, host: str, address: str, port: int | None) -> tuple[Any, Any, Any]:
        """(trusted keys, trusted authorities, revoked keys) for the name; as ssh does, not
        for the address behind it, and with an alias not for the port either."""
        self.address = address
        database = read_known_hosts(self.files)
        name = (self.alias or host).lower()
        keys, authorities, revoked, *_x509 = database.match(name, "", None if self.alias else port)
        self.matched = bool(keys or authorities)
        self.revoked = list(revoked)
        return keys, authorities, revoked

    @property
    def named_files(self) -> str:
        """Where a key would have to be added, in words."""
        return self.files[0] if self.files else str(Path(USER_KNOWN_HOSTS[0]).expanduser())


def read_known_hosts(files: Iterable[str]) -> asyncssh.SSHKnownHosts:
    """All entries of the files; a line that cannot be read, or a missing file, is no entry."""
    import asyncssh

    database = asyncssh.SSHKnownHosts()
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            try:
                database.load(line)
            except ValueError:
                continue
    return database


def known_hosts_for(options: asyncssh.SSHClientConnectionOptions, target: Target) -> KnownHosts:
    """What `options` (parsed from the ssh configuration) say about known_hosts.

    Raises `SshConfigInvalid` where a path holds a token or variable that is not known.
    """
    config = options.config
    alias = config.get("HostKeyAlias")
    user_files = config.get("UserKnownHostsFile", list(USER_KNOWN_HOSTS))
    global_files = config.get("GlobalKnownHostsFile", list(GLOBAL_KNOWN_HOSTS))
    tokens = {
        "%": "%",
        "d": str(Path.home()),
        "h": options.host,
        "i": str(os.getuid()),
        "k": str(alias or target.host),
        "L": socket.gethostname().partition(".")[0],
        "l": socket.gethostname(),
        "n": target.host,
        "p": str(options.port),
        "r": options.username,
    }

    def expand(path: str) -> str:
        try:
            path = _VARIABLE.sub(lambda match: os.environ[match[1]], path)
            path = _TOKEN.sub(lambda match: tokens[match[1]], path)
        except KeyError as error:
            detail = f"known_hosts file {path!r}: {error} is not known"
            raise SshConfigInvalid(host=str(target), detail=detail) from None
        return str(Path(path).expanduser())

    names = [*_strings(user_files), *_strings(global_files)]
    return KnownHosts([expand(name) for name in names], str(alias) if alias else None)


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []
