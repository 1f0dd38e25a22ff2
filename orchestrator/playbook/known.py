"""Which hosts there are: those of the ssh configuration, of the inventory, and of the network."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from platformdirs import user_config_path

from agent.errors import AgentError
from orchestrator.inventory import parse_target
from orchestrator.playbook.model import Host, Hosts

_MAX_INCLUDES = 16


def default_inventory() -> Path:
    """The user's own hosts.yaml (XDG_CONFIG_HOME, ~/.config)."""
    return user_config_path("streamferry") / "hosts.yaml"


def ssh_patterns(files: list[str], depth: int = 0) -> Iterator[str]:
    """What stands behind `Host` in ssh configuration files, and in those that they include."""
    for name in files:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.replace("=", " ", 1).replace('"', "").split()
            if len(words) > 1 and words[0].lower() == "host":
                yield from words[1:]
            elif len(words) > 1 and words[0].lower() == "include" and depth < _MAX_INCLUDES:
                for word in words[1:]:
                    base = os.path.expanduser(word)
                    if not os.path.isabs(base):
                        base = str(Path("~/.ssh").expanduser() / base)
                    yield from ssh_patterns(sorted(glob.glob(base)), depth + 1)


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False


class Known:
    """The hosts that may be named."""

    def __init__(
        self,
        ssh_files: list[str],
        inventory: Hosts | None = None,
        resolve: Callable[[str], bool] = resolves,
    ) -> None:
        self.hosts: dict[str, Host] = dict(inventory.hosts) if inventory is not None else {}
        self._patterns = [one for one in ssh_patterns(ssh_files) if not one.startswith("!")]
        self._resolve = resolve

    def problem(self, name: str) -> str:
        """What is wrong with a host's name, in words; "" where it is known."""
        if name in self.hosts:
            return ""
        try:
            host = parse_target(name).host
        except AgentError as error:
            return error.message
        patterns = [one for one in self._patterns if one.strip("*?")]
        if any(fnmatch.fnmatchcase(host, one) for one in patterns) or self._resolve(host):
            return ""
        return f"no host is named `{name}`"

    def near(self, name: str) -> str:
        plain = [one for one in self._patterns if not set("*?") & set(one)]
        found = difflib.get_close_matches(name, [*self.hosts, *plain], n=1, cutoff=0.6)
        return found[0] if found else ""

    def has_label(self, label: str) -> bool:
        return bool(self.with_label(label))

    def with_label(self, label: str) -> list[str]:
        """The names of the hosts that have the label "KEY=VALUE"."""
        key, _, value = label.partition("=")
        return [name for name, one in self.hosts.items() if one.labels.get(key) == value]

    def get(self, name: str) -> Host:
        """What the inventory says of a host; nothing in particular where it is not there."""
        return self.hosts.get(name) or Host()
