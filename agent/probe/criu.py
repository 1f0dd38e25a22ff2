"""Which CRIU a host has, and whether it works there: both asked of the program itself."""

from __future__ import annotations

import re
import subprocess

from agent.probe.facts import CriuFacts

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C"}
_TIMEOUT = 20.0  # seconds
_VERSION = re.compile(r"^Version: (\d+(?:\.\d+)*)", re.MULTILINE)
_COMPLAINT = re.compile(r"Error \([^)]*\): (.*)")


def look(path: str | None) -> CriuFacts:
    """Facts of the CRIU at `path`; None where there is none."""
    facts = CriuFacts(path=path, version=None, problem=None)
    if path is None:
        return facts
    status, output = _run([path, "--version"])
    found = _VERSION.search(output)
    if found is None:
        facts["problem"] = f"`criu --version` says {output.strip()[:120]!r}"
        return facts
    facts["version"] = [int(part) for part in found[1].split(".")]
    status, output = _run([path, "check"])
    if status:
        complaints = _COMPLAINT.findall(output) or output.strip().splitlines() or ["nothing"]
        facts["problem"] = complaints[0].strip()[:300]
    return facts


def _run(arguments: list[str]) -> tuple[int, str]:
    """(exit status, all output)"""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            cwd="/",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")
