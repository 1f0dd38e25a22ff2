"""Asks a service on this host whether it is well: by TCP, by HTTP, or by a command.

One attempt, within a time. Whoever asks decides how often, and what follows.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
from typing import TypedDict
from urllib.parse import urlsplit

from agent.errors import ProtocolError, shown
from agent.probe.criu import SEARCH_PATH

KINDS = ("tcp", "http", "command")
LONGEST = 60.0  # seconds that one attempt may take
_OUTPUT = 200  # characters of a command's last line


class HealthFacts(TypedDict):
    healthy: bool
    detail: str  # what was found, for a person


def check(kind: str, what: str, seconds: float) -> HealthFacts:
    """Try once. `what`: "ADDRESS PORT", a URL, or a line for the shell.

    Raises `ProtocolError` where the question makes no sense.
    """
    if kind not in KINDS or not isinstance(what, str):
        raise ProtocolError(detail=f"no check is named {shown(kind)}")
    if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST:
        raise ProtocolError(detail=f"{shown(seconds)} is no number of seconds for a check")
    try:
        if kind == "tcp":
            return _tcp(what, seconds)
        return _http(what, seconds) if kind == "http" else _command(what, seconds)
    except TimeoutError:
        return HealthFacts(healthy=False, detail=f"no answer within {seconds:g} s")
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return HealthFacts(healthy=False, detail=said[:_OUTPUT])


def _tcp(what: str, seconds: float) -> HealthFacts:
    address, _, port = what.rpartition(" ")
    if not address or not port.isdecimal():
        raise ProtocolError(detail=f"{shown(what)} is no address and port")
    with socket.create_connection((address, int(port)), timeout=seconds):
        return HealthFacts(healthy=True, detail=f"{address} port {port} accepts connections")


def _http(url: str, seconds: float) -> HealthFacts:
    """GET; well is what answers with a status below 400 (redirections are not followed)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "http" or not host:
        raise ProtocolError(detail=f"{shown(url)} is no http:// URL")
    connection = http.client.HTTPConnection(host, port or 80, timeout=seconds)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Connection": "close"})
        status = connection.getresponse().status
    finally:
        connection.close()
    return HealthFacts(healthy=status < 400, detail=f"it answers with status {status}")


def _command(line: str, seconds: float) -> HealthFacts:
    """Well is what ends with status 0; whatever it has started ends with it."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TimeoutError from None
    last = output.decode(errors="replace").strip().splitlines()[-1:] or [""]
    said = f": {last[0][:_OUTPUT]}" if last[0] else ""
    return HealthFacts(
        healthy=process.returncode == 0,
        detail=f"the command ended with status {process.returncode}{said}",
    )
