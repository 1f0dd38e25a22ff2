"""Bad input: one clear message, a fix, exit status 3, and nothing changed on either host."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.support.lab import HOSTS, ROOT, SERVICE, SSH_CONFIG, Lab
from tests.support.workloads import start_redis, start_server

KEYS = Path("/var/lib/streamferry-lab")


def snapshot(lab: Lab) -> dict[str, list[str]]:
    """What a refused migration must leave as it was."""
    command = (
        "nft list tables; ip -o address; ls -A /run/streamferry 2>&1; "
        "ps -eo pid=,comm= | grep -v ' ps$\\| grep$\\| sh$\\| sshd'"
    )
    return {host: lab.run(host, command, check=False).splitlines() for host in HOSTS}


@contextlib.contextmanager
def unchanged(lab: Lab) -> Iterator[None]:
    before = snapshot(lab)
    yield
    for host in HOSTS:
        lab.settle(host)
    assert snapshot(lab) == before


def refused(lab: Lab, pid: int, code: str, *options: str, source: str = "src") -> str:
    """Both the move and the check refuse with `code`; the message."""
    with unchanged(lab):
        migration = lab.migrate(source, "dst", pid, *options)
        assert migration.status == 3, (migration.result, migration.stderr)
        assert migration.result["outcome"] == "refused"
        error = migration.result["error"]
        assert error["code"] == code, error
        assert error["phase"] == "check" and error["hint"]
        checked = lab.migrate("check", source, pid, "dst", *options)
        assert checked.status == 3
        assert checked.result["error"]["code"] == code
    return str(error["message"])


def test_no_such_process(lab: Lab) -> None:
    assert "4000000" in refused(lab, 4_000_000, "no-such-process")


def test_the_agent_itself(lab: Lab) -> None:
    sshd = int(lab.run("src", "pgrep -o -x sshd"))
    refused(lab, sshd, "agent-itself")


def test_a_zombie_and_a_thread(lab: Lab) -> None:
    pid = start_redis(lab)
    thread = lab.run("src", f"ls /proc/{pid}/task | grep -v ^{pid}$ | head -1")
    refused(lab, int(thread), "not-a-process")


def test_the_same_machine(lab: Lab, redis: int) -> None:
    with unchanged(lab):
        assert lab.migrate("src", "src", redis).result["error"]["code"] == "same-machine"


def test_the_same_machine_under_two_names(lab: Lab, redis: int, tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = SSH_CONFIG.read_text().replace("Host src dst", "Host src dst again")
    config.write_text("Host again\n    HostName 10.77.0.11\n" + text)
    with unchanged(lab):
        status, result = run(config, "src", "again", redis)
    assert (status, result["error"]["code"]) == (3, "same-machine")


def test_an_unreachable_host(lab: Lab, redis: int, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(SSH_CONFIG.read_text().replace("10.77.0.12", "10.77.0.99"))
    with unchanged(lab):
        status, result = run(config, "src", "dst", redis)
    assert (status, result["error"]["code"]) == (3, "unreachable")
    assert "dst" in result["error"]["message"]


@pytest.mark.parametrize("kind", ["unknown", "changed"])
def test_a_host_key_that_is_not_known(lab: Lab, redis: int, tmp_path: Path, kind: str) -> None:
    known = tmp_path / "known_hosts"
    line = (KEYS / "known_hosts").read_text().replace("src,dst,", "src,")
    line = line.replace("10.77.0.11,10.77.0.12", "10.77.0.11")
    if kind == "changed":
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        line += f"dst,10.77.0.12 {other}"
    known.write_text(line)
    config = tmp_path / "config"
    config.write_text(SSH_CONFIG.read_text().replace(str(KEYS / "known_hosts"), str(known)))
    before = known.read_bytes()
    with unchanged(lab):
        status, result = run(config, "src", "dst", redis)
    assert (status, result["error"]["code"]) == (3, f"host-key-{kind}")
    assert known.read_bytes() == before


def test_no_root(lab: Lab, redis: int) -> None:
    message = refused(lab, redis, "capabilities-missing", source="plain@src")
    assert "plain@src" in message


@contextlib.contextmanager
def criu_replaced(lab: Lab, host: str, script: str | None) -> Iterator[None]:
    """The host's criu is another program, or none."""
    path = lab.run(host, "readlink -f $(command -v criu)")
    lab.run(host, f"mv {path} {path}.real")
    try:
        if script is not None:
            lab.put(host, path, f"#!/bin/sh\n{script}\n")
            lab.run(host, f"chmod 755 {path}")
        yield
    finally:
        lab.run(host, f"mv {path}.real {path}")


@pytest.mark.parametrize("host", HOSTS)
def test_criu_missing(lab: Lab, redis: int, host: str) -> None:
    with criu_replaced(lab, host, None):
        assert host in refused(lab, redis, "criu-missing")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("version", ["3.17.1", "4.1.1"])
def test_criu_too_old(lab: Lab, redis: int, host: str, version: str) -> None:
    with criu_replaced(lab, host, f"echo Version: {version}"):
        message = refused(lab, redis, "criu-too-old")
    assert host in message and version in message


def test_the_pid_is_taken(lab: Lab, redis: int) -> None:
    lab.take("dst", redis)
    assert "sleep" in refused(lab, redis, "pid-taken")


@pytest.mark.parametrize(
    ("change", "code"),
    [("rm /tmp/byte_server.py", None), ("rm {library}", "file-missing"),
     ("sh -c 'echo >> {library}'", "file-different")],
)  # fmt: skip
def test_a_file_is_missing_or_different(lab: Lab, change: str, code: str | None) -> None:
    pid = start_server(lab)
    library = lab.run("src", f"awk '/_random|_hashlib|_json/ {{print $6; exit}}' /proc/{pid}/maps")
    lab.run("dst", f"cp -p {library} /run/lab-kept")
    try:
        lab.run("dst", change.format(library=library))
        if code is None:  # the script itself is not open any more
            assert lab.migrate("check", "src", pid, "dst").status == 0
        else:
            assert library in refused(lab, pid, code)
    finally:
        lab.run("dst", f"cp -p /run/lab-kept {library}")


def test_an_address_that_cannot_move(lab: Lab) -> None:
    command = "redis-server --bind 10.77.0.11 --port 6380 --save '' --protected-mode no"
    pid = lab.start("src", command)
    with lab.client("redis_counter.py", "10.77.0.11", 6380, 1, 1, 0.01) as client:
        client.line()
        assert "10.77.0.11" in refused(lab, pid, "address-not-movable")
        assert client.finish()["errors"] == []


def test_no_room_at_the_destination(lab: Lab, redis: int) -> None:
    directory = "/run/lab-small"
    for host in HOSTS:
        lab.run(host, f"mkdir -p {directory} && mount -t tmpfs -o size=1m none {directory}")
    try:
        refused(lab, redis, "images-room", "--images-dir", f"{directory}/images")
    finally:
        for host in HOSTS:
            lab.run(host, f"umount {directory} && rmdir {directory}")


def test_a_check_that_finds_nothing(lab: Lab, redis: int) -> None:
    with unchanged(lab):
        checked = lab.migrate("check", "src", redis, "dst")
    assert checked.status == 0
    assert checked.result["outcome"] == "ready"
    assert checked.result["plan"]["addresses"][0]["address"] == SERVICE


@pytest.mark.parametrize(
    "arguments",
    [
        ["src", "dst"],
        ["src", "--pid", "1"],
        ["src", "dst", "--pid", "none"],
        ["src", "dst", "--pid", "0"],
        ["src", "dst", "--pid", "1", "--max-blackout", "-1"],
        ["src", "dst", "--pid", "1", "--fault", "nowhere@source=error"],
        ["src", "dst", "--pid", "1", "--unknown"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "Error:" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"


def run(config: Path, source: str, destination: str, pid: int) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "orchestrator", "-F", str(config), "--json"]
    done = subprocess.run(
        [*command, source, destination, "--pid", str(pid)],
        capture_output=True, text=True, cwd=ROOT, timeout=90, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)
