"""What systemd is told."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from orchestrator.scheduling.notify import Notifier

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "playbooks/streamferry-schedule.service"


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told_of_ready_alive_and_stopping(tmp_path: Path, abstract: bool) -> None:
    name = f"streamferry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(f"\0{name}" if abstract else name)
        there.settimeout(5)
        environment = {"NOTIFY_SOCKET": f"@{name}" if abstract else name}
        notifier = Notifier({**environment, "WATCHDOG_USEC": "30000000"})
        notifier.ready("1 served")
        assert there.recv(100) == b"READY=1\nSTATUS=1 served"
        notifier.alive("2 served")
        assert there.recv(100) == b"STATUS=2 served\nWATCHDOG=1"
        notifier.stopping()
        assert there.recv(100) == b"STOPPING=1"
        other = Notifier({**environment, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"})
        other.alive("x")
        assert there.recv(100) == b"STATUS=x"
    notifier.alive("nobody is there any more")
    Notifier({}).ready("nobody has asked")


def test_the_unit_is_one(tmp_path: Path) -> None:
    text = UNIT.read_text()
    for word in ("Type=notify", "WatchdogSec=", "Restart=on-failure", "schedule serve"):
        assert word in text
    program = tmp_path / "migrate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/streamferry/bin/migrate", str(program)))
    try:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not here")
    said = [one for one in done.stderr.splitlines() if UNIT.name in one]
    assert done.returncode == 0 and said == []
